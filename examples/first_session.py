"""A first session: one sandbox, one file, one command."""

import asyncio

from sandhold import Sandhold


async def main() -> None:
    sandhold = await Sandhold.connect()  # the running `make dev`, or SANDHOLD_TEMPORAL_ADDRESS
    session = await sandhold.open_session(owner="ada", policy={"idle_stop_s": 120})
    box = await session.create_sandbox(title="build")
    await session.write_file(box.sandbox_id, "hello.py", "print('hello from', __import__('os').uname().nodename)\n")
    ran = await session.exec(box.sandbox_id, "python3 hello.py")
    print(ran.exit_code, ran.stdout)
    print(await session.end())


asyncio.run(main())
