from pathlib import Path
from typing import Any

import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.pairs.pair import Pair, digest_pairs, read_pairs, write_pairs
from edge_steer.reference.model import Reference
from edge_steer.storage import digests

DENSE = "2 + 3 = 5, so the answer is \\boxed{5}."
SPARSE = "Mia has 2.\n\n2 + 3 = 5.\n\nThe answer is \\boxed{5}."
GOOD = '{"question": "2 + 3?", "positive": "5", "negative": "five"}'


def test_write_then_read_gives_equal_pairs_and_the_digest_of_the_file(tmp_path: Path) -> None:
    made = (Pair("2 + 3?", DENSE, SPARSE, "5", "first"), Pair("Ümläut \u2028 \x85?", "ja", "nein"))
    path = tmp_path / "pairs.jsonl"
    write_pairs(made, path)
    assert read_pairs(path) == made
    assert digest_pairs(made) == digests.digest(path)
    assert digest_pairs(made[::-1]) != digest_pairs(made)


def test_blank_lines_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(f"\r\n{GOOD}\r\n\r\n".encode())
    assert read_pairs(path) == (Pair("2 + 3?", "5", "five"),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"question": "2 + 3?"', "not JSON at column"),
        (b"[1]", "a list; an object with question, positive, negative"),
        (b'{"question": "q", "positive": "p"}', "field 'negative' is missing"),
        (b'{"question": "q", "positive": "p", "negative": "n", "style": "x"}', "unknown field 'style'"),
        (b'{"question": 3, "positive": "p", "negative": "n"}', "field 'question' is int; it must be text"),
        (b'{"question": null, "positive": "p", "negative": "n"}', "field 'question' is NoneType"),
        (b'{"question": "q", "positive": " ", "negative": "n"}', "field 'positive' is empty"),
        (b'{"question": "q", "positive": "p", "negative": "n", "answer": 5}', "field 'answer' is int"),
        (b'{"question": "q", "positive": "p", "negative": "p"}', "are equal"),
        (b'{"question": "\xff"}', "not UTF-8 at byte"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(f"{GOOD}\n\n".encode() + line + b"\n")
    with pytest.raises(EdgeSteerError) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_blank_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(EdgeSteerError, match="no such file"):
        read_pairs(path)
    path.touch()
    with pytest.raises(EdgeSteerError, match="is empty"):
        read_pairs(path)
    path.write_text("\n\n")
    with pytest.raises(EdgeSteerError, match="holds no pairs"):
        read_pairs(path)


def test_an_unwritable_place_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="cannot write"):
        write_pairs([Pair("q", "p", "n")], tmp_path / "missing" / "pairs.jsonl")
    assert not list(tmp_path.iterdir())


def test_each_side_has_its_own_prompt() -> None:
    plain = Pair("q", "p", "n", system="be brief")
    positive, negative = plain.sides
    before = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "q"})
    assert (positive.prompt, negative.prompt) == (before, before)
    assert (positive.answer, negative.answer) == ("p", "n")

    other = Pair("q", "same", "same", system="be brief", negative_question="r", negative_system="")
    assert other.sides[0].prompt == before
    assert other.sides[1].prompt == ({"role": "user", "content": "r"},)
    assert Pair("q", "p", "n", negative_system="ramble").sides[1].prompt[0] == {"role": "system", "content": "ramble"}

    raw = Pair("", "p", "n", raw=True)
    assert (raw.sides[0].prompt, raw.sides[1].prompt) == ("", "")


def test_a_side_is_read_as_the_tokens_of_its_prompt_and_answer(tiny: Reference) -> None:
    chat = Pair("2 + 3?", "five", "5", system="be brief").sides[0]
    prompt = tiny.chat([{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 3?"}])
    assert chat.tokens(tiny) == (prompt, tiny.encode("five", start=False))
    raw = Pair("<|im_start|>user", "five", "5", raw=True).sides[1]
    assert raw.tokens(tiny) == (tiny.encode("<|im_start|>user"), tiny.encode("5", start=False))


def test_optional_fields_survive_a_file_and_leave_no_trace_where_they_are_not_set(tmp_path: Path) -> None:
    made = (
        Pair("q", "p", "n"),
        Pair("q", "p", "p", system="s", negative_question="r", negative_system=""),
        Pair("", "p", "n", raw=True),
    )
    path = tmp_path / "pairs.jsonl"
    write_pairs(made, path)
    assert read_pairs(path) == made
    assert path.read_text().splitlines()[0] == '{"question": "q", "positive": "p", "negative": "n"}'


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"raw": 1}, "field 'raw' is int"),
        ({"raw": True, "system": "s"}, "no place for a system message"),
        ({"raw": True, "negative_system": ""}, "no place for a system message"),
        ({"system": ""}, "field 'system' is empty"),
        ({"negative_question": " "}, "field 'negative_question' is empty"),
        ({"question": ""}, "field 'question' is empty"),
        ({"positive": "n", "negative_question": "q"}, "are equal"),
    ],
)
def test_sides_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgeSteerError, match=said):
        Pair(**{"question": "q", "positive": "p", "negative": "n", **fields})


def test_no_pairs_make_no_file(tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="no pairs to write"):
        write_pairs([], tmp_path / "pairs.jsonl")
    assert not list(tmp_path.iterdir())
