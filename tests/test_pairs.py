from pathlib import Path

import pytest

from edge_steer import files, pairs
from edge_steer.errors import EdgeSteerError
from edge_steer.pairs import Pair

DENSE = "2 + 3 = 5, so the answer is \\boxed{5}."
SPARSE = "Mia has 2.\n\n2 + 3 = 5.\n\nThe answer is \\boxed{5}."
GOOD = '{"question": "2 + 3?", "positive": "5", "negative": "five"}'


def test_write_then_read_gives_equal_pairs_and_the_digest_of_the_file(tmp_path: Path) -> None:
    made = (Pair("2 + 3?", DENSE, SPARSE, "5", "first"), Pair("Ümläut \u2028 \x85?", "ja", "nein"))
    path = tmp_path / "pairs.jsonl"
    pairs.write(path, made)
    assert pairs.read(path) == made
    assert pairs.digest(made) == files.digest(path)
    assert pairs.digest(made[::-1]) != pairs.digest(made)


def test_blank_lines_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(f"\r\n{GOOD}\r\n\r\n".encode())
    assert pairs.read(path) == (Pair("2 + 3?", "5", "five"),)


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
        pairs.read(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_blank_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(EdgeSteerError, match="no such file"):
        pairs.read(path)
    path.touch()
    with pytest.raises(EdgeSteerError, match="is empty"):
        pairs.read(path)
    path.write_text("\n\n")
    with pytest.raises(EdgeSteerError, match="holds no pairs"):
        pairs.read(path)


def test_an_unwritable_place_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="cannot write"):
        pairs.write(tmp_path / "missing" / "pairs.jsonl", [Pair("q", "p", "n")])
    assert not list(tmp_path.iterdir())


def test_check_grades_both_answers_and_measures_their_density() -> None:
    right, wrong, unknown = pairs.check(
        [Pair("q", DENSE, SPARSE, "5", "a"), Pair("q", DENSE, SPARSE, "6"), Pair("q", DENSE, "no box")],
        count=lambda text: len(text.split()),
    )
    assert right.name == "a" and right.right
    assert (right.positive_steps, right.negative_steps) == (1, 3)
    assert (right.positive_tokens, right.negative_tokens) == (10, 12)
    assert right.density_ratio == pytest.approx(10 / 4)
    assert wrong.name == "pair 2" and not wrong.positive_right and not wrong.negative_right
    assert not unknown.right


def test_without_an_answer_the_two_must_agree_and_a_grader_can_be_plugged_in() -> None:
    agreeing, differing = Pair("q", DENSE, SPARSE), Pair("q", DENSE.replace("5", "4"), SPARSE)
    found = pairs.check([agreeing, differing], count=len)
    assert [row.right for row in found] == [True, False]
    assert found[1].negative_right
    asked = []

    def grade(solution: str, expected: str) -> bool:
        asked.append((solution, expected))
        return True

    assert pairs.check([differing], count=len, grade=grade)[0].right
    assert asked == [(differing.positive, "5"), (SPARSE, "5")]


def test_boxed_takes_the_last_box_and_matches_braces() -> None:
    assert pairs.boxed("\\boxed{1} then \\boxed{ \\frac{1}{2} }.") == "\\frac{1}{2}"
    assert pairs.boxed("\\boxed{1") is None
    assert pairs.boxed("1") is None
