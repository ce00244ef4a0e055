"""A process that tries to isolate a sandbox: `python -m sandhold.cli.isolation_probe FOLDER`.

Exits with 0 when that works; otherwise prints why not. It gives root away, so it cannot be part of another process.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    try:
        from sandhold.local_daytona.interface import IsolationUnavailable
        from sandhold.local_daytona.isolation import Isolation
        from sandhold.local_daytona.privileges import give_up_root
    except ModuleNotFoundError as missing:
        sys.stdout.write(f"the local server needs {missing.name}: install the package with its extra `local`\n")
        return 1
    folder = Path(sys.argv[1])
    try:
        give_up_root(folder)
        Isolation.probe(folder)
    except IsolationUnavailable as error:
        sys.stdout.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
