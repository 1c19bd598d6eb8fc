"""Tests' side of the page: real Chromium at a real server on the bundled model; what it asked and what went wrong."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from paths import DENSE
from serving_server import Server, launch

QUESTION = "Tom has 20 pears. Tom finds 11 pears. Tom loses 25 pears. How many pears does Tom have now?"
TIMEOUT = 20_000  # ms
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
Json = dict[str, Any]


@dataclass
class Visit:
    """An open page: what it asked of the server, and what went wrong."""

    page: Any
    url: str
    bodies: list[Json] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.wait_for_selector(".examples button")

    def ask(self, question: str) -> None:
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        self.wait_until_ended()

    def wait_until_ended(self) -> None:
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.turns .column')].length >= 2 &&"
            " [...document.querySelectorAll('.turns .column')].every("
            "   (one) => ['done', 'stopped', 'failed'].includes(one.dataset.state))"
        )

    def act_when(self, condition: str, action: str, *, begin: str = "") -> None:
        """Act inside the page as soon as a condition holds; an act from outside may come after the answer's end."""
        self.page.evaluate(
            f"""() => new Promise((resolve) => {{
                const look = () => ({condition}) ? resolve(void ({action})) : requestAnimationFrame(look);
                {begin};
                look();
            }})"""
        )

    def answer(self, side: str) -> str:
        """What the last turn's column shows."""
        text: str = self.page.locator(f".turns .{side} .answer").last.text_content()
        return text

    def tokens(self) -> str:
        """What the token view shows, without its signs for line ends."""
        return "".join(self.page.locator(".tokens [role=option]").all_text_contents()).replace("↵", "")

    def figures(self, side: str) -> list[str]:
        texts: list[str] = self.page.locator(f".turns .{side} .figures dd").all_text_contents()
        return texts

    def change_requests(self, **fields: object) -> None:
        """Add fields to each chat request on its way to the server."""

        def passed_on(route: Any) -> None:
            route.continue_(post_data=json.dumps({**route.request.post_data_json, **fields}))

        self.page.route("**/v1/chat/completions", passed_on)


def visit(browser: Any, url: str, **options: object) -> Iterator[Visit]:
    """A page that must leave no error in the console and ask no one but its own server."""
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    opened = Visit(page, url)

    def note(request: Any) -> None:
        if not request.url.startswith(url):
            opened.elsewhere.append(request.url)
        if request.url.endswith("/v1/chat/completions"):
            opened.bodies.append(request.post_data_json)

    page.on("request", note)
    page.on("console", lambda message: opened.problems.append(message.text) if message.type == "error" else None)

    def failed(response: Any) -> None:
        if response.status >= 400:
            opened.refusals.append(response.text())

    page.on("response", failed)
    page.on("pageerror", lambda error: opened.problems.append(str(error)))
    yield opened
    context.close()
    assert opened.problems == [], (opened.problems, opened.refusals)
    assert opened.elsewhere == [], opened.elsewhere


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium for the tests of one file: while Playwright is started, asyncio can run nothing else in this thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("the page's tests need chromium; apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_server(browser: Any) -> Iterator[Server]:
    """Greedy where a request says nothing, so that an answer depends on its steering alone."""
    server = launch(
        "--vector", f"dense={DENSE}", "--preset", "terse=1 dense", "--temperature", "0", "--alias", "abacus",
        "--parallel", "6",
    )  # fmt: skip
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def opened(browser: Any, page_server: Server) -> Iterator[Visit]:
    """The page as a visitor finds it, 1,280 pixels wide."""
    for one in visit(browser, page_server.url, viewport={"width": 1280, "height": 800}):
        one.open()
        yield one
