"""Temporal's own Web UI in a real browser: clear text for who has the console's token, cipher text for anybody else."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Error, Page, Request, async_playwright, expect

from sandhold.client import Sandhold, Session
from sandhold.contracts.names import sandbox_workflow_id
from sandhold.settings import Settings
from tests.dev_process import PATIENCE_S, SANDHOLD, Dev, clean_environment
from tests.security.canaries import Canaries, Search

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CIPHER_TEXT = "U0hQ"
"""How every encrypted payload begins, as the Web UI shows it: `SHP` in base64."""


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(
            f"there is no Chromium: none of {', '.join(PROGRAMS)} is on the PATH (Debian: apt install chromium)"
        )
    # Chromium's own sandbox cannot be had by root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as driver:
        running = await driver.chromium.launch(executable_path=program, args=arguments)
        yield running
        await running.close()


@dataclass(frozen=True)
class Seen:
    """What there is to see: a command whose text is the canary, and whose output had a secret in it."""

    page: str
    """Of the sandbox's history."""
    text: str
    search: Search


@pytest.fixture(scope="module")
async def seen(dev: Dev) -> AsyncIterator[Seen]:
    canaries = Canaries()
    text, secret = canaries.plain("command"), canaries.plain("session secret")
    stack = dev.stack()
    sandhold = await Sandhold.connect(Settings(data_dir=dev.data_dir, temporal_address=stack["temporal_address"]))
    session = await sandhold.open_session("web-ui", policy={"end_grace_s": 0.5})
    _set_secret(dev, session, secret)
    await session.create_sandbox(sandbox_id="box", secret_env=["TOKEN"])
    said = await session.exec("box", f"echo {text} $TOKEN")
    assert said.stdout == f"{text} [redacted:TOKEN]\n"
    workflow_id = sandbox_workflow_id(session.session_id, "box")
    page = f"{stack['ui_url']}/namespaces/default/workflows/{quote(workflow_id, safe='')}"
    yield Seen(page, text, canaries.search())
    await session.end()


def _set_secret(dev: Dev, session: Session, value: str) -> None:
    subprocess.run(
        [SANDHOLD, "secrets", "set", session.session_id, "TOKEN"],
        env=clean_environment() | {"SANDHOLD_DATA_DIR": str(dev.data_dir)},
        input=value.encode(),
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page of a browser that nobody has used before."""
    context = await browser.new_context(accept_downloads=False)
    context.set_default_timeout(PATIENCE_S * 1000)
    yield await context.new_page()
    await context.close()


class Received:
    """Everything that a page gets, whoever sends it, less what is still on its way, like a long poll."""

    def __init__(self, page: Page) -> None:
        self._bodies: list[asyncio.Task[bytes]] = []
        self._answered: set[tuple[str, int]] = set()
        self.lost: list[str] = []
        """Whose bodies came too late: a browser forgets those of a page that it leaves."""
        page.on("requestfinished", self._keep)

    def _keep(self, request: Request) -> None:
        self._bodies.append(asyncio.create_task(self._body(request)))

    async def _body(self, request: Request) -> bytes:
        answer = await request.response()
        assert answer is not None
        if request.method == "POST":
            self._answered.add((answer.url, answer.status))
        try:
            return await answer.body()
        except Error:
            self.lost.append(answer.url)
            return b""

    def statuses(self, path: str) -> set[int]:
        """What calls of such an address were answered with."""
        return {status for url, status in self._answered if path in url}

    async def all(self) -> bytes:
        return b"\n".join(await asyncio.gather(*self._bodies))


async def _look(page: Page, seen: Seen) -> None:
    """Open the event with which the command was sent to a worker."""
    await page.goto(seen.page, wait_until="domcontentloaded")
    await page.get_by_role("tab", name="Event History").or_(page.get_by_role("link", name="Event History")).click()
    await page.get_by_test_id("event-summary-row").filter(has_text="run_command").first.click()


async def _everything_shown(page: Page) -> bytes:
    return (await page.content() + await page.locator("body").inner_text()).encode()


async def test_the_web_ui_shows_clear_text_in_a_browser_that_was_given_the_token(
    dev: Dev, page: Page, seen: Seen
) -> None:
    stack, received = dev.stack(), Received(page)
    token = (dev.data_dir / "console-token").read_text().strip()
    # As docs/operating.md tells a person to do it.
    await page.goto(f"{stack['ui_url']}/namespaces/default/workflows", wait_until="domcontentloaded")
    await page.get_by_test_id("data-encoder-status-configured").click()
    await page.get_by_test_id("use-local-endpoint-input").check()
    await page.get_by_test_id("data-encoder-endpoint-input").fill(f"{stack['console_url']}/{token}")
    await page.get_by_test_id("confirm-modal-button").filter(has_text="Apply").filter(visible=True).click()

    await _look(page, seen)
    await expect(page.locator("body")).to_contain_text(seen.text, timeout=PATIENCE_S * 1000)
    assert CIPHER_TEXT not in await page.locator("body").inner_text()
    # The secret is in no payload: the token does not show it either.
    found = seen.search.in_bytes(await _everything_shown(page) + await received.all())
    assert received.statuses(f"/{token}/decode") == {200}
    assert "command (as it is)" in found
    assert not {each for each in found if each.startswith("session secret")}


async def test_the_web_ui_shows_cipher_text_in_every_other_browser(page: Page, seen: Seen) -> None:
    received = Received(page)
    await _look(page, seen)
    await expect(page.locator("body")).to_contain_text(CIPHER_TEXT, timeout=PATIENCE_S * 1000)
    everything = await received.all()
    assert received.statuses("/decode") == {401}
    assert not received.lost
    assert CIPHER_TEXT.encode() in everything
    assert not seen.search.in_bytes(await _everything_shown(page) + everything)


async def test_a_browser_keeps_the_console_from_pages_of_other_sites(dev: Dev, page: Page, seen: Seen) -> None:
    stack = dev.stack()
    token = (dev.data_dir / "console-token").read_text().strip()
    ask = """async (url) => {
        const sent = {method: "POST", headers: {"Content-Type": "application/json"}, body: '{"payloads": []}'}
        try { return (await fetch(url, sent)).status } catch (refused) { return refused.message }
    }"""
    endpoint = f"{stack['console_url']}/{token}/decode"
    await page.goto(stack["ui_url"], wait_until="domcontentloaded")
    assert await page.evaluate(ask, endpoint) == 200
    await page.goto(f"{stack['console_url']}/healthz")
    assert await page.evaluate(ask, endpoint.replace("127.0.0.1", "localhost")) == "Failed to fetch"
