"""Request bodies: what is taken, what is refused by name."""

import json

import pytest

from edge_steer.serving.bodies import ChatBody, CompletionBody, NativeBody, PromptString, check
from edge_steer.serving.replies import ApiError

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def chat(**fields: object) -> ChatBody:
    return check(ChatBody, json.dumps({**HELLO, **fields}).encode())


def refusal(**fields: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert "\n" not in caught.value.message
    return caught.value


def test_null_is_as_if_left_out() -> None:
    assert chat(temperature=None, seed=None, stop=None, tools=None) == chat()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_the_three_names_of_a_length_are_one(name: str) -> None:
    assert chat(**{name: 7}).max_tokens == 7


def test_two_lengths_that_differ_are_refused() -> None:
    assert "max_tokens" in refusal(max_tokens=3, n_predict=4).message


@pytest.mark.parametrize("name", ["user", "metadata", "store", "n_keep", "id_slot"])
def test_fields_that_change_no_text_are_taken(name: str) -> None:
    assert chat(**{name: 1}) == chat()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("functions", [{}]),
        ("adaptive_target", 0.5),
        ("t_max_predict_ms", 10),
        ("grammar_lazy", True),
        ("post_sampling_probs", True),
        ("audio", {}),
        ("modalities", ["audio"]),
    ],
)
def test_what_changes_the_text_and_is_not_here_is_refused_by_name(name: str, value: object) -> None:
    error = refusal(**{name: value})
    assert error.status == 501
    assert f"'{name}'" in error.message


@pytest.mark.parametrize(("name", "off"), [("tools", []), ("post_sampling_probs", False), ("echo", False)])
def test_what_is_not_here_may_be_said_to_be_off(name: str, off: object) -> None:
    assert chat(**{name: off}) == chat()


def test_an_unknown_field_is_refused_by_name() -> None:
    assert "'temprature'" in refusal(temprature=1).message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", -0.1),
        ("min_p", 2),
        ("n", 0),
        ("max_tokens", -2),
        ("max_tokens", 2.5),
        ("seed", 2**32),
        ("repeat_penalty", 0),
        ("mirostat", 3),
        ("stop", [""]),
        ("stop", ["x"] * 1000),
        ("top_logprobs", 3),
        ("logit_bias", {"1": "much"}),
        ("logit_bias", [[1]]),
        ("response_format", {"type": "yaml"}),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"content": "no role"}]),
        ("control_vectors", "dense"),
        ("control_vectors", [{"scale": 1}]),
        ("control_vectors", [{"name": "dense", "path": "/etc/passwd"}]),
        ("control_vectors", [{"name": "dense", "phase": "prompt"}]),
        ("steering", {"dense": 4}),
        ("steering", {"vectors": [{"name": "a", "source": "/etc/passwd"}]}),
        ("steering", {"vectors": [{"name": "a", "apply": {"prompt": "none"}}]}),
    ],
)
def test_a_bad_value_names_its_field(name: str, value: object) -> None:
    error = refusal(**{name: value})
    assert error.status in (400, 501)
    assert name in error.message or "source" in error.message or "apply" in error.message


def test_two_ways_to_steer_are_refused() -> None:
    assert "one of them" in refusal(steering="4 dense", control_vectors=[]).message


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b'"x"', b"\xff", b"[" * 100_000, b'{"messages": NaN}', b"nope"])
def test_what_is_no_object_is_one_line(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        check(ChatBody, body)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message


def test_numbers_that_are_none_are_refused() -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        with pytest.raises(ApiError):
            check(ChatBody, b'{"messages":[{"role":"user","content":"x"}],"temperature":%s}' % number.encode())


@pytest.mark.parametrize("prompt", ["a text", [1, 2, 3], [1, "two", 3], ["a", "b"], [[1, 2], "b", ["c", 3]]])
def test_prompts_are_texts_tokens_or_both(prompt: object) -> None:
    raw = json.dumps({"prompt": prompt}).encode()
    assert check(CompletionBody, raw).prompt == check(NativeBody, raw).prompt == prompt


@pytest.mark.parametrize("prompt", [{"text": "a"}, 1, [True], [[1.5]], [[[1]]]])
def test_prompts_of_other_kinds_are_refused(prompt: object) -> None:
    with pytest.raises(ApiError, match="prompt"):
        check(CompletionBody, json.dumps({"prompt": prompt}).encode())


def test_parts_of_text_are_joined_and_others_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].plain()["content"] == "a\nb"
    image = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    assert refusal(messages=[{"role": "user", "content": [image]}]).status == 501


def test_whether_the_last_message_is_gone_on_with() -> None:
    open_answer = [*HELLO["messages"], {"role": "assistant", "content": "I"}]
    assert not chat().continues
    assert chat(messages=open_answer).continues
    assert not chat(messages=open_answer, add_generation_prompt=True).continues
    assert not chat(messages=open_answer, continue_final_message=False).continues
    assert "cannot both" in refusal(continue_final_message=True, add_generation_prompt=True).message
    assert "two of the assistant" in refusal(messages=[*open_answer, open_answer[-1]]).message


def test_formats_as_schemas() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    nested = chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert nested.response_format
    assert nested.response_format.demanded == schema
    plain = chat(response_format={"type": "text"}).response_format
    assert plain
    assert plain.demanded is None
    free = chat(response_format={"type": "json_object"}).response_format
    assert free
    assert free.demanded == {"type": "object"}


def test_a_prompt_in_an_object_has_no_images() -> None:
    body = check(NativeBody, b'{"prompt": ["a", {"prompt_string": "b"}]}')
    assert isinstance(body.prompt, list)
    assert body.prompt[1] == PromptString(prompt_string="b")
    with pytest.raises(ApiError, match="multimodal_data"):
        check(NativeBody, b'{"prompt": {"prompt_string": "b", "multimodal_data": ["aGk="]}}')
