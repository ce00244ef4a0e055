"""Where targets lead that sandboxes name: one target of one port, and nothing else beside it."""

from __future__ import annotations

import pytest

from sandhold.local_daytona.command import routes_of
from tests.git.stacks import GITHUB, GitStack


def test_a_route_is_read_with_its_host_and_ports() -> None:
    assert routes_of(["GitHub.test:443=127.0.0.1:8443", "a:80=[::1]:81"]) == {
        "github.test:443": ("127.0.0.1", 8443),
        "a:80": ("::1", 81),
    }


@pytest.mark.parametrize("text", ["", "a", "a:80", "a:80=b", "a=b:80", "a:0=b:80", "a:80=b:65536", "a b:80=c:80"])
def test_any_other_text_is_no_route(text: str) -> None:
    with pytest.raises(ValueError, match="NAME:PORT=HOST:PORT"):
        routes_of([text])


async def test_a_route_opens_no_other_way_to_its_server(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    ask = "curl -s -o /dev/null -w '%{http_connect} ' --noproxy '' -x http://127.0.0.1:3128"
    targets = [f"https://{GITHUB}/", f"https://{GITHUB}:{git.server.port}/", f"https://127.0.0.1:{git.server.port}/"]
    told = await session.exec(sandbox, "; ".join(f"{ask} {target}" for target in targets))
    reached, elsewhere, loopback = told.stdout.split()
    assert reached == "200"
    assert elsewhere in {"403", "502"}
    assert loopback == "403"
