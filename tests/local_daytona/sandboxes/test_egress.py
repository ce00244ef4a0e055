"""The way out of a sandbox: what its proxy lets through, and what it refuses."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from sandhold.local_daytona.egress import is_of_this_machine, is_public
from tests.local_daytona.sandboxes.boxes import Box, running_boxes


@contextlib.asynccontextmanager
async def http_target() -> AsyncIterator[str]:
    """A server on the machine's loopback that tells what it was asked; its `host:port`."""

    async def tell(request: web.Request) -> web.Response:
        body = await request.read()
        told = {"method": request.method, "path": request.path_qs, "host": request.host, "size": len(body)}
        return web.json_response({**told, "headers": dict(request.headers)})

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=bytes(20_000_000))

    app = web.Application(client_max_size=64_000_000)
    app.add_routes([web.get("/large", large), web.route("*", "/{rest:.*}", tell)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
async def allowed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Box, str]]:
    """A sandbox that may reach one server of this machine, and that server's address."""
    data_dir = tmp_path_factory.mktemp("egress") / "data"
    async with http_target() as target, running_boxes(data_dir, allow=[target]) as boxes:
        yield await boxes.start("box"), target


#: In a sandbox the variables for loopback names leave the proxy out; these commands go through it.
THROUGH = "curl -sS --noproxy '' -x http://127.0.0.1:3128"


async def test_a_plain_request_goes_through_and_looks_direct_to_the_target(allowed: tuple[Box, str]) -> None:
    box, target = allowed
    told = await box.run(f"{THROUGH} -H 'Proxy-Authorization: secret' -H 'X-Mine: yes' 'http://{target}/a/b?c=d'")
    assert '"path": "/a/b?c=d"' in told
    assert f'"host": "{target}"' in told
    assert '"X-Mine": "yes"' in told
    assert "Proxy" not in told


async def test_bodies_pass_in_both_directions(allowed: tuple[Box, str]) -> None:
    box, target = allowed
    await box.run("head -c 30000000 /dev/zero > body")
    assert '"size": 30000000' in await box.run(f"{THROUGH} --data-binary @body http://{target}/")
    assert await box.run(f"{THROUGH} http://{target}/large | wc -c") == "20000000\n"


async def test_a_tunnel_carries_any_bytes(allowed: tuple[Box, str]) -> None:
    box, target = allowed
    assert '"path": "/tunnelled"' in await box.run(f"{THROUGH} --proxytunnel http://{target}/tunnelled")


async def test_twenty_requests_at_once_pass(allowed: tuple[Box, str]) -> None:
    box, target = allowed
    told = await box.run(f"for i in $(seq 20); do {THROUGH} http://{target}/$i -o $i & done; wait; cat $(seq 20)")
    assert all(f'"path": "/{number}"' in told for number in range(1, 21))


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:{port}",
        "localhost:{port}",
        "127.1:{port}",
        "0.0.0.0:{port}",
        "2130706433:{port}",
        "[::1]:{port}",
        "[::ffff:127.0.0.1]:{port}",
        "[64:ff9b::7f00:1]:{port}",
        "10.0.0.1:80",
        "192.168.1.1:80",
        "172.16.0.1:80",
        "169.254.169.254:80",
        "[fe80::1]:80",
        "[fd00::1]:80",
        "100.64.0.1:80",
        "224.0.0.1:80",
    ],
)
async def test_loopback_private_and_link_local_targets_are_refused(shared_box: Box, target: str) -> None:
    async with http_target() as server:
        address = target.format(port=server.rpartition(":")[2])
        for option in ("", "--proxytunnel"):
            answer = await shared_box.run(
                f"{THROUGH} {option} -o /dev/null -w '%{{http_code}} %{{http_connect}}' http://{address}/ || true"
            )
            assert "403" in answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("garbage\\r\\n\\r\\n", 400),
        ("GET / HTTP/1.1\\r\\n\\r\\n", 400),
        ("GET https://example.com/ HTTP/1.1\\r\\n\\r\\n", 400),
        ("GET ftp://example.com/ HTTP/1.1\\r\\n\\r\\n", 400),
        ("CONNECT nohost HTTP/1.1\\r\\n\\r\\n", 400),
        ("CONNECT host:99999 HTTP/1.1\\r\\n\\r\\n", 400),
        ("CONNECT :80 HTTP/1.1\\r\\n\\r\\n", 400),
        ("CONNECT [::1 HTTP/1.1\\r\\n\\r\\n", 400),
        ("GET http://x/ HTTP/2\\r\\n\\r\\n", 505),
        ("\\xff\\xfe\\r\\n\\r\\n", 400),
        ("GET http://x/ HTTP/1.1\\r\\n' + 'X: y\\r\\n' * 50000 + '\\r\\n", 431),
        ("CONNECT ' + 'a' * 300 + '.invalid:80 HTTP/1.1\\r\\n\\r\\n", 502),
        ("CONNECT a..b:80 HTTP/1.1\\r\\n\\r\\n", 502),
    ],
)
async def test_what_is_no_request_to_a_proxy_is_refused_and_harms_nobody(
    shared_box: Box, sent: str, status: int
) -> None:
    script = (
        "import socket\n"
        "s = socket.create_connection(('127.0.0.1', 3128))\n"
        "try: s.sendall(('" + sent + "').encode('latin-1'))\n"
        "except OSError: pass\n"
        "print(s.makefile('rb').readline())\n"
    )
    await shared_box.fs.upload_file(script.encode(), "send.py")
    assert f"HTTP/1.1 {status} " in await shared_box.run("timeout 60 python3 send.py")


async def test_a_name_that_does_not_exist_is_said_to_be_so(shared_box: Box) -> None:
    assert "cannot be resolved" in await shared_box.run(f"{THROUGH} http://no-such-name.invalid/")


async def test_a_sandbox_without_network_has_no_proxy(tmp_path: Path) -> None:
    async with http_target() as target, running_boxes(tmp_path / "data", allow=[target]) as boxes:
        box = await boxes.start("box", network_block_all=True)
        assert (await box.process.exec(f"{THROUGH} http://{target}/")).exit_code == 7
        assert await box.run("env | grep -i proxy || echo none") == "none\n"


async def test_connections_beyond_the_limit_are_refused_and_the_others_go_on(allowed: tuple[Box, str]) -> None:
    box, target = allowed
    script = (
        "import socket\n"
        "held = [socket.create_connection(('127.0.0.1', 3128)) for _ in range(300)]\n"
        "import select, time\n"
        "time.sleep(0.5)\n"
        "print(len(select.select(held, [], [], 0)[0]))\n"
    )
    await box.fs.upload_file(script.encode(), "many.py")
    assert await box.run("python3 many.py") == "44\n"
    assert '"path": "/"' in await box.run(f"sleep 0.3; {THROUGH} http://{target}/")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::101:101", True),
        ("2002:a00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("not an address", False),
    ],
)
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_the_machines_own_addresses_are_known() -> None:
    assert is_of_this_machine("127.0.0.1", socket.AF_INET)
    assert not is_of_this_machine("192.0.2.1", socket.AF_INET)
