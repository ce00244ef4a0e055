"""The codec server shows clear text to who has the token, and to nobody else."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from pydantic import SecretStr
from structlog.testing import capture_logs
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.converter import WorkflowSerializationContext

from sandhold.console import codec_server as module
from sandhold.console.access import TokenUnusable, console_token, token_file
from sandhold.console.codec_server import codec_server
from sandhold.console.serving import ui_origins
from sandhold.security.codec import ENCODING, is_encrypted
from sandhold.security.key_document import KeyDocument
from sandhold.security.key_rings import EnvironmentKeyRing, FileKeyRing
from sandhold.settings import Settings
from sandhold.temporal import data_converter

TOKEN = "a-token-that-nobody-else-has-0123456789"
UI = "http://127.0.0.1:8233"
RING = EnvironmentKeyRing(KeyDocument.new().dump())
CONVERTER = data_converter(RING)
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def origins() -> list[str]:
    return [UI]


@pytest.fixture
async def http(origins: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    server = codec_server(RING, TOKEN, lambda: origins, "default")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://codec") as client:
        yield client


async def _encrypted(value: Any, namespace: str = "default") -> list[Payload]:
    context = WorkflowSerializationContext(namespace=namespace, workflow_id="session/one")
    return await CONVERTER.with_context(context).encode([value])


def _body(payloads: Sequence[Payload]) -> dict[str, Any]:
    return MessageToDict(Payloads(payloads=payloads))


def _payloads(answer: httpx.Response) -> list[Payload]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return list(ParseDict(answer.json(), Payloads()).payloads)


@pytest.mark.parametrize("path", ["/decode", f"/{TOKEN}/decode", f"/{TOKEN}/decode?preserveStorageRefs=true"])
async def test_who_has_the_token_gets_clear_text(http: httpx.AsyncClient, path: str) -> None:
    headers = BEARER if path == "/decode" else {}
    sent = _body([*await _encrypted("secret"), *await _encrypted({"more": 1})])
    answer = await http.post(path, json=sent, headers={**headers, "X-Namespace": "default"})
    assert [json.loads(payload.data) for payload in _payloads(answer)] == ["secret", {"more": 1}]


async def test_encode_is_the_other_way_round_and_workers_read_it(http: httpx.AsyncClient) -> None:
    plain = [Payload(metadata={"encoding": b"json/plain"}, data=b'"from an operator"')]
    [encoded] = _payloads(await http.post("/encode", json=_body(plain), headers=BEARER))
    assert encoded.metadata["encoding"] == ENCODING
    anywhere = WorkflowSerializationContext(namespace="default", workflow_id="sandbox/one/box")
    assert await CONVERTER.with_context(anywhere).decode([encoded]) == ["from an operator"]


@pytest.mark.parametrize(
    ("path", "authorization"),
    [
        ("/decode", None),
        ("/decode", ""),
        ("/decode", "Bearer"),
        ("/decode", "Bearer "),
        ("/decode", f"Bearer {TOKEN}x"),
        ("/decode", f"Bearer {TOKEN[:-1]}"),
        ("/decode", f"Basic {TOKEN}"),
        ("/decode", TOKEN),
        ("/wrong/decode", None),
        ("/wrong/decode", f"Bearer {TOKEN}"),
        ("/%ff%f0/decode", None),
        ("/%F0%9F%94%91/decode", None),
        ("/encode", None),
        ("/other", None),
    ],
)
async def test_nobody_else_gets_anything(http: httpx.AsyncClient, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await http.post(path, json=_body(await _encrypted("secret")), headers=headers)
    assert answer.status_code == 401
    assert answer.json() == {"error": "the console's token is missing or wrong"}


async def test_only_the_two_conversions_are_there(http: httpx.AsyncClient) -> None:
    assert (await http.post("/destroy", json={}, headers=BEARER)).status_code == 404
    assert (await http.get("/decode", headers=BEARER)).status_code == 405
    assert (await http.post(f"/{TOKEN}/decode/more", json={})).status_code == 404


async def test_a_browser_is_answered_on_the_web_uis_pages_only(http: httpx.AsyncClient, origins: list[str]) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-namespace"}
    sent = _body(await _encrypted("secret"))
    for origin in (UI, "http://localhost:8233"):
        preflight = await http.options(f"/{TOKEN}/decode", headers={"Origin": origin, **asked})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin
        assert preflight.headers["access-control-allow-methods"] == "POST"
        assert {"content-type", "x-namespace", "authorization"} <= set(
            preflight.headers["access-control-allow-headers"].split(", ")
        )
        assert preflight.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in preflight.headers
        answer = await http.post(f"/{TOKEN}/decode", json=sent, headers={"Origin": origin})
        assert json.loads(_payloads(answer)[0].data) == "secret"
        assert answer.headers["access-control-allow-origin"] == origin
        # The page itself has to be able to read that the token is wrong.
        refused = await http.post("/wrong/decode", json=sent, headers={"Origin": origin})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)
    for origin in ("http://evil.example", "null", "", f"{UI}.evil.example", "https://127.0.0.1:8233", f"{UI}0"):
        preflight = await http.options(f"/{TOKEN}/decode", headers={"Origin": origin, **asked})
        answer = await http.post(f"/{TOKEN}/decode", json=sent, headers={"Origin": origin, **BEARER})
        for response in (preflight, answer):
            assert response.status_code == 403
            assert not [name for name in response.headers if name.startswith("access-control")]
            assert "secret" not in response.text
    origins.clear()
    assert (await http.options("/decode", headers={"Origin": UI, **asked})).status_code == 403, "it is asked each time"


async def test_what_does_not_open_comes_back_as_it_is_and_hides_nothing_else(http: httpx.AsyncClient) -> None:
    [foreign] = await data_converter(EnvironmentKeyRing(KeyDocument.new().dump())).encode(["of another ring"])
    [altered] = await _encrypted("altered")
    altered.data = altered.data[:-1]
    [elsewhere] = await _encrypted("of another namespace", "other")
    plain = Payload(metadata={"encoding": b"json/plain"}, data=b'"plain"')
    sent = [foreign, *await _encrypted("secret"), altered, plain, elsewhere]
    with capture_logs() as logs:
        found = _payloads(await http.post("/decode", json=_body(sent), headers=BEARER))
    assert [is_encrypted(payload) for payload in found] == [True, False, True, False, True]
    assert [found[0], found[2], found[3], found[4]] == [foreign, altered, plain, elsewhere]
    assert json.loads(found[1].data) == "secret"
    assert len(logs) == 3
    named = {"X-Namespace": "other", **BEARER}
    [opened] = _payloads(await http.post("/decode", json=_body([elsewhere]), headers=named))
    assert json.loads(opened.data) == "of another namespace"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"7",
        b"{",
        b'{"payloads": 1}',
        b'{"payloads": [{"data": "x"}]}',
        b"\xff",
        b'{"secret": "value"}',
        b"[" * 9999,
    ],
)
async def test_a_body_that_is_none_is_refused_and_never_quoted(http: httpx.AsyncClient, content: bytes) -> None:
    answer = await http.post("/decode", content=content, headers=BEARER)
    assert answer.status_code == 400
    assert "value" not in answer.text


async def test_a_body_is_read_no_further_than_it_may_be_long(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1000)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 500
        raise AssertionError("more was read than may be")

    assert (await http.post("/decode", content=endless(), headers=BEARER)).status_code == 413


async def test_the_health_endpoint_tells_whether_the_key_ring_can_be_used(tmp_path: Path) -> None:
    ring = FileKeyRing(tmp_path / "keyring.json")
    ring.create()
    server = codec_server(ring, TOKEN, list, "default")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://codec") as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        ring.path.chmod(0o644)
        ring._looked_at = -10.0
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")


def test_the_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "new")
    token = console_token(settings)
    assert len(token) >= 43
    assert console_token(settings) == token
    assert stat.S_IMODE(token_file(settings).stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["console-token"]
    token_file(settings).chmod(0o640)
    with pytest.raises(TokenUnusable, match="chmod 600"):
        console_token(settings)


@pytest.mark.parametrize("token", ["short", "x" * 31, "with/slash" * 4, "with space" * 4, "schlüssel" * 4])
def test_a_token_that_can_be_guessed_or_is_no_part_of_a_path_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(TokenUnusable) as refusal:
        console_token(Settings(data_dir=tmp_path, console_token=SecretStr(token)))
    assert token not in str(refusal.value)
    assert console_token(Settings(data_dir=tmp_path, console_token=SecretStr(TOKEN))) == TOKEN
    assert list(tmp_path.iterdir()) == []


def test_the_web_ui_is_that_of_the_settings_or_of_the_running_stack(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert ui_origins(settings) == []
    (tmp_path / "stack.json").write_text(json.dumps({"ui_url": UI}))
    assert ui_origins(settings) == [UI]
    (tmp_path / "stack.json").write_text("{")
    assert ui_origins(settings) == []
    named = Settings(data_dir=tmp_path, console_ui_origins="https://one.example/, https://two.example")
    assert ui_origins(named) == ["https://one.example", "https://two.example"]
