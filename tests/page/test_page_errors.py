"""What goes wrong is said in a line that a person can read."""

from collections.abc import Iterator
from typing import Any

import pytest
from page_visit import QUESTION, Visit, visit
from paths import DENSE
from serving_server import KEY, Server, launch


@pytest.fixture
def locked(browser: Any) -> Iterator[Server]:
    server = launch("--vector", f"dense={DENSE}", "--api-key", KEY)
    yield server
    server.process.kill()
    server.process.wait()


def test_what_the_server_refuses_is_readable_and_the_other_answer_comes(opened: Visit) -> None:
    opened.page.get_by_label("Layers").fill("99")
    opened.ask(QUESTION)
    error = opened.page.text_content(".turns .steered .error")
    assert "layer" in error
    assert "99" in error
    assert opened.answer("unsteered")
    assert opened.page.text_content(".turns .unsteered .error") == ""
    tops = [opened.page.locator(f".turns .steered {part}").bounding_box()["y"] for part in (".error", ".answer")]
    assert tops[0] < tops[1]  # in sight, however long the other answer is
    assert all("400" in problem for problem in opened.problems)  # what the browser itself says of a refused request
    opened.problems.clear()


def test_a_question_that_is_too_long_is_readable(opened: Visit) -> None:
    opened.ask(QUESTION * 100)
    assert "context" in opened.page.text_content(".turns .unsteered .error")
    opened.problems.clear()


def test_a_server_with_a_key_asks_for_it_and_one_that_is_gone_is_told(browser: Any, locked: Server) -> None:
    for opened in visit(browser, locked.url):
        page = opened.page
        page.goto(locked.url)
        page.get_by_label("This server wants a key").fill("wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('.key input')?.value === ''")
        page.get_by_label("This server wants a key").fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(".vector")
        assert page.evaluate("() => localStorage.length") == 0
        opened.ask(QUESTION)
        assert opened.answer("steered")
        page.click("[aria-label='Share the steered request']")
        assert "$EDGE_STEER_KEY" in page.text_content("pre")
        assert KEY not in page.content()
        page.keyboard.press("Escape")
        locked.process.kill()
        locked.process.wait()
        page.click("[aria-label='Answer again']")
        opened.wait_until_ended()
        assert "does not answer" in page.text_content(".turns .steered .error")
        opened.problems.clear()
