"""A program that has imported the worker, and forks one for each line that it reads, one after the other.

Importing it takes seconds, which is most of a worker's start; tests that kill it all the time would do little else.
Prints `started PID`, then what the worker prints (`ready URL`), and `ended CODE`.
"""

from __future__ import annotations

import os
import sys

import worker


def main() -> None:
    print("loaded", flush=True)
    while sys.stdin.readline():
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = worker.main()
            finally:
                os._exit(code)
        print(f"started {pid}", flush=True)
        _, status = os.waitpid(pid, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
