"""Asking: two answers that stream side by side, stop, come again, and differ only by their steering."""

import time
from typing import Any

import httpx
from page_visit import QUESTION, Visit
from serving_server import Server

from edge_steer.tasks.task import count_steps, density


def direct(server: Server, vectors: list[dict[str, Any]]) -> str:
    """The server's own greedy answer."""
    with server.client as http:
        body = {"messages": [{"role": "user", "content": QUESTION}], "control_vectors": vectors, "max_tokens": 512}
        text: str = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    return text


def test_both_answers_stream_at_once(opened: Visit) -> None:
    opened.change_requests(ignore_eos=True)
    opened.page.fill("#question", QUESTION)
    opened.page.press("#question", "Enter")
    opened.page.wait_for_function("() => document.querySelectorAll('.column[data-state=running]').length === 2")
    assert opened.page.locator(".answer[aria-busy=true]").count() == 2
    before = opened.answer("steered")
    opened.page.wait_for_function(
        "(before) => document.querySelector('.steered .answer').textContent.length > before", arg=len(before) + 20
    )
    opened.wait_until_ended()
    assert opened.answer("steered").startswith(before)
    assert opened.page.locator(".answer[aria-busy=true]").count() == 0


def test_stop_keeps_what_came_and_frees_the_server(opened: Visit, page_server: Server) -> None:
    opened.change_requests(ignore_eos=True, max_tokens=900)
    opened.page.click(".examples button")
    opened.act_when(
        "document.querySelector('.steered .answer').textContent.length > 20"
        " && document.querySelector('#send').textContent === 'Stop'",
        "document.querySelector('#send').click()",
    )
    opened.wait_until_ended()
    assert opened.page.get_attribute(".steered", "data-state") == "stopped"
    assert opened.page.locator(".note", has_text="stopped").count() == 2
    assert len(opened.answer("steered")) > 20
    assert opened.page.text_content("#send") == "Ask"
    with page_server.client as http:
        deadline = time.monotonic() + 5
        while any(slot["is_processing"] for slot in http.get("/slots").json()):
            assert time.monotonic() < deadline


def test_a_moved_slider_changes_the_next_answer(opened: Visit, page_server: Server) -> None:
    opened.ask(QUESTION)
    steered, unsteered = opened.answer("steered"), opened.answer("unsteered")
    opened.page.focus("input[type=range]")
    opened.page.keyboard.press("End")
    assert opened.page.input_value("[aria-label='Strength of dense as a number']") == "1"
    assert opened.answer("steered") == steered
    opened.page.click("[aria-label='Answer again']")
    opened.wait_until_ended()
    assert opened.answer("unsteered") == unsteered == direct(page_server, [])
    assert opened.answer("steered") == direct(page_server, [{"name": "dense", "scale": 1.0}])
    assert opened.answer("steered") != steered


def test_answers_follow_the_slider_where_that_is_wished(opened: Visit) -> None:
    opened.ask(QUESTION)
    steered = opened.answer("steered")
    opened.page.check("text=Answer again when steering changes")
    opened.page.click(".pill:has-text('terse')")
    opened.page.wait_for_function(
        "(before) => document.querySelector('.steered .answer').textContent !== before", arg=steered
    )
    opened.wait_until_ended()
    assert opened.bodies[-1]["seed"] == opened.bodies[0]["seed"]


def test_the_two_requests_differ_in_their_vectors_alone(opened: Visit) -> None:
    opened.ask(QUESTION)
    steered, unsteered = opened.bodies
    assert steered.pop("control_vectors") == [{"name": "dense", "scale": 0.325, "layers": "5", "phase": "all"}]
    assert unsteered.pop("control_vectors") == []
    assert steered == unsteered
    assert opened.answer("steered") != opened.answer("unsteered")


def test_at_strength_0_both_are_equal(opened: Visit) -> None:
    opened.page.get_by_label("Temperature").fill("1")
    opened.page.get_by_label("Strength of dense as a number").fill("0")
    opened.ask(QUESTION)
    assert opened.bodies[0] == opened.bodies[1]
    assert opened.bodies[0]["temperature"] == 1
    assert opened.answer("steered") == opened.answer("unsteered") != ""


def test_figures_are_those_of_an_evaluation(opened: Visit) -> None:
    opened.ask(QUESTION)
    for side in ("steered", "unsteered"):
        steps, tokens, per_step, rate = opened.figures(side)
        text = opened.answer(side)
        assert int(steps) == count_steps(text)
        assert per_step == f"{density(int(tokens), int(steps)):.1f}"
        assert float(rate) > 0
    with httpx.Client(base_url=opened.url) as http:
        counted = len(http.post("/tokenize", json={"content": opened.answer("steered")}).json()["tokens"])
    assert abs(int(opened.figures("steered")[1]) - counted) <= 1


def test_an_edited_question_is_asked(opened: Visit) -> None:
    opened.ask(QUESTION)
    opened.page.click("[aria-label='Edit the question']")
    opened.page.fill("[aria-label='Edited question']", QUESTION.replace("20", "41"))
    opened.page.keyboard.press("Enter")
    opened.wait_until_ended()
    assert "41" in opened.answer("unsteered")
    assert opened.page.locator(".turn").count() == 1


def test_earlier_turns_go_along_where_wished(opened: Visit) -> None:
    opened.ask(QUESTION)
    opened.ask(QUESTION)
    assert [message["role"] for message in opened.bodies[-1]["messages"]] == ["user"]
    opened.page.click("summary:has-text('Conversation')")
    opened.page.check("text=Each question follows on")
    opened.page.get_by_label("System message").fill("Be brief.")
    first = opened.answer("steered")
    opened.ask(QUESTION)
    messages = opened.bodies[-2]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[4]["content"] == first


def test_output_that_is_html_is_shown_as_text(opened: Visit) -> None:
    html = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    opened.change_requests(grammar=f'root ::= "{html}"')
    opened.page.on("dialog", lambda dialog: opened.problems.append(dialog.message))
    opened.ask(f"<b>{QUESTION}</b>")
    assert opened.answer("steered") == opened.answer("unsteered") == html
    assert opened.page.text_content(".question-text") == f"<b>{QUESTION}</b>"
    opened.page.click("[aria-label='Tokens of the steered answer']")
    opened.page.wait_for_selector(".token-details li")
    assert opened.page.locator(".turns img, .turns script, .turns b:not(.token-summary b)").count() == 0


def test_no_script_of_the_page_can_make_html_of_text(opened: Visit) -> None:
    refused = opened.page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } }"
    )
    assert refused == "TypeError"
    assert all("TrustedHTML" in problem for problem in opened.problems)
    opened.problems.clear()
