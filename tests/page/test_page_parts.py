"""Token view, strengths, sharing, presets; and that the page serves everyone: axe's rules, keys, widths, motion."""

import math
import subprocess
import sys
from typing import Any

import httpx
import pytest
from page_visit import QUESTION, Visit, visit
from serving_server import Server

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the page's tests need axe")


def test_tokens_show_their_alternatives_steered_and_not(opened: Visit) -> None:
    opened.ask(QUESTION)
    page = opened.page
    answer = opened.answer("steered")
    page.click("[aria-label='Tokens of the steered answer']")
    page.wait_for_selector(".token-details li")
    options = page.locator(".tokens [role=option]")
    assert options.count() == int(opened.figures("steered")[1])
    assert opened.tokens() == answer
    selected = page.locator("[role=option][aria-selected=true]")
    assert selected.get_attribute("data-shade") not in ("0", "1", "-1")  # the token that steering moved most
    assert page.locator(".side.steered li").count() >= 5
    assert page.locator(".side.unsteered li").count() >= 5
    assert page.locator(".side [aria-current]").count() == 2

    page.locator("[role=option]").first.click()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => [...document.querySelectorAll('.tokens span')].indexOf(document.activeElement)") == 1
    page.keyboard.press("End")
    assert page.locator("[role=option]").last.get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    assert page.locator("[role=option]").first.get_attribute("tabindex") == "0"


def test_a_tokens_probabilities_are_the_servers(opened: Visit) -> None:
    opened.ask(QUESTION)
    page = opened.page
    page.click("[aria-label='Tokens of the unsteered answer']")
    page.wait_for_selector(".token-details li")
    index = page.evaluate(
        "() => [...document.querySelectorAll('.tokens span')].findIndex((one) => one.ariaSelected === 'true')"
    )
    with httpx.Client(base_url=opened.url, timeout=60) as http:
        for side, body in zip(("steered", "unsteered"), opened.bodies, strict=True):
            own = {**opened.bodies[1], "logprobs": True, "stream": False, "top_logprobs": 0}
            ids = [
                entry["id"]
                for entry in http.post("/v1/chat/completions", json=own).json()["choices"][0]["logprobs"]["content"]
            ]
            scored = http.post("/v1/chat/logprobs", json={
                "messages": body["messages"], "control_vectors": body["control_vectors"], "answer": ids,
            }).json()["content"]  # fmt: skip
            shown = page.text_content(f".side.{side} [aria-current] span").rstrip("%")
            assert float(shown) == pytest.approx(100 * math.exp(scored[index]["logprob"]), abs=0.1)


def test_five_strengths_answer_and_one_can_be_taken(opened: Visit) -> None:
    page = opened.page
    page.fill("#question", QUESTION)
    page.click("#try-strengths")
    page.wait_for_function("() => document.querySelectorAll('.strengths [data-state=done]').length === 5")
    scales = [sum(vector["scale"] for vector in body["control_vectors"]) for body in opened.bodies]
    assert scales == [-0.325, 0, 0.1625, 0.325, 0.65]
    assert len({body["seed"] for body in opened.bodies}) == 1
    steps = [int(text) for text in page.locator(".strengths .figures div:first-child dd").all_text_contents()]
    assert steps[0] > steps[-1]
    page.click("[aria-label='Steering double'] button")
    assert page.locator("dialog").count() == 0
    assert page.input_value("[aria-label='Strength of dense as a number']") == "0.65"


def test_closing_the_strengths_stops_them(opened: Visit, page_server: Server) -> None:
    opened.change_requests(ignore_eos=True, max_tokens=900)
    opened.act_when(
        "document.querySelector('.strengths [data-state=running]')",
        "document.querySelector('dialog').close()",
        begin="document.querySelector('#try-strengths').click()",
    )
    opened.page.wait_for_selector("dialog", state="detached")
    opened.page.wait_for_timeout(500)
    with page_server.client as http:
        assert not any(slot["is_processing"] for slot in http.get("/slots").json())
    opened.page.click("#try-strengths")
    opened.page.wait_for_selector("dialog")
    opened.page.keyboard.press("Escape")
    opened.page.wait_for_selector("dialog", state="detached")


def test_what_is_shared_gives_the_same_answer(opened: Visit) -> None:
    opened.ask(QUESTION + " Don't guess; it's \"easy\".")
    page = opened.page
    page.click("[aria-label='Share the steered request']")
    curl = page.text_content("pre")
    out = subprocess.run(
        ["bash", "-c", curl.replace("curl ", "curl -s ", 1)], capture_output=True, text=True, check=True
    )
    content = httpx.Response(200, text=out.stdout).json()["choices"][0]["message"]["content"]
    assert content == opened.answer("steered")
    page.click("text=Python")
    script = page.text_content("pre")
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.rstrip("\n") == opened.answer("steered")


def test_what_is_copied_is_the_answer(opened: Visit) -> None:
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.ask(QUESTION)
    opened.page.click("[aria-label='Copy the unsteered answer']")
    opened.page.wait_for_selector("[aria-label=Copied]")
    assert opened.page.evaluate("() => navigator.clipboard.readText()") == opened.answer("unsteered")


def test_presets_set_the_vectors(opened: Visit) -> None:
    number = opened.page.get_by_label("Strength of dense as a number")
    for name, strength in (("terse", "1"), ("Off", "0"), ("As tuned", "0.325")):
        opened.page.click(f".pill:has-text('{name}')")
        assert number.input_value() == strength


def test_a_vector_says_its_tokens_when_it_is_opened(opened: Visit) -> None:
    opened.page.click(".vector >> nth=0 >> .lens-panel summary")
    opened.page.wait_for_selector(".lens dt")
    lowered = opened.page.locator(".vector >> nth=0 >> .lens dd").nth(1)
    assert lowered.locator(".lens-token").first.text_content() == "\\n\\n"
    assert "faint" not in lowered.locator(".lens-token").first.get_attribute("class")


def test_sentences_are_announced_whole(opened: Visit) -> None:
    opened.ask(QUESTION)
    said = opened.page.locator("#announcer p").all_text_contents()
    assert said[0] == "Steered answer:"
    assert said[-1] == "Both answers have ended."
    assert " ".join(said[1:-1]).split() == opened.answer("steered").split()
    assert all(sentence.endswith((".", "}")) for sentence in said[1:-1])


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    browser: Any, page_server: Server, scheme: str, width: int
) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "bypass_csp": True}
    for opened in visit(browser, page_server.url, **options):
        opened.open()
        page = opened.page
        check(page)
        if width < 900:
            page.click("button:has-text('Steering')")
            check(page)
            page.click("button:has-text('Close')")
        opened.ask(QUESTION)
        page.click("[aria-label='Tokens of the steered answer']")
        page.wait_for_selector(".token-details li")
        check(page)
        page.click("[aria-label='Share the steered request']")
        check(page)
        page.keyboard.press("Escape")
        page.click("#try-strengths")
        page.wait_for_function("() => document.querySelectorAll('.strengths [data-state=done]').length === 5")
        check(page)


def check(page: Any) -> None:
    """No rule of axe is broken and nothing scrolls sideways."""
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_alone_reaches_everything(opened: Visit) -> None:
    page = opened.page
    name = "() => { const e = document.activeElement; return e.ariaLabel || e.id || e.textContent; }"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(name))
    assert reached >= {
        "Skip to the question", "Strength of dense", "question", "try-strengths", "send", "Switch to dark"
    }  # fmt: skip
    assert any("pears" in name for name in reached)


def test_the_theme_is_the_systems_until_one_is_chosen(browser: Any, page_server: Server) -> None:
    for opened in visit(browser, page_server.url, color_scheme="dark"):
        opened.open()
        dark = opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        opened.page.click("[aria-label='Switch to light']")
        light = opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert light != dark
        opened.open()
        assert opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == light


def test_nothing_moves_where_motion_is_not_wanted(browser: Any, page_server: Server) -> None:
    for opened in visit(browser, page_server.url, reduced_motion="reduce"):
        opened.open()
        opened.change_requests(ignore_eos=True)
        opened.page.click(".examples button")
        opened.page.wait_for_selector(".column[data-state=running]")
        assert opened.page.evaluate("() => document.getAnimations().length") == 0
        opened.wait_until_ended()
