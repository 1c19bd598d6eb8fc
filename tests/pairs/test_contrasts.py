import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.extraction.extract import extract
from edge_steer.pairs.contrasts import CONTRASTS, Sources, thought_of
from edge_steer.pairs.pair import ContrastPairs, Pair
from edge_steer.pairs.solutions import FORMAT, Solution
from edge_steer.reference.model import Reference

REASONED = (
    "First I add.\n\n2 + 3 = 5.\n\nWait, is that so?\n\n5 * 2 = 10.\n \nAlternatively, halve it.\n\n"
    "Let me verify: it\u2019s correct.\n\nSo \\boxed{10}."
)


def solved(path: Path, *solutions: Solution) -> Path:
    header = {"format": FORMAT}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *map(asdict, solutions))))
    return path


def solution(identity: str, text: str, **fields: Any) -> Solution:
    return Solution(**{
        "id": identity, "repeat": 0, "question": f"q{identity}", "prompt": f"q{identity}?", "system": None,
        "answer": "1", "text": text, "tokens": 1, "correct": True, "finish": "stop", **fields,
    })  # fmt: skip


def contrast(kind: str, *files: Path, **options: Any) -> ContrastPairs:
    return CONTRASTS[kind](Sources(files, **options))


def test_in_family_takes_the_larger_models_right_traces_and_asks_as_the_target_was(tmp_path: Path) -> None:
    large = solved(
        tmp_path / "large.jsonl",
        solution("1", "short", prompt="asked otherwise"),
        solution("2", "wrong", correct=False),
        solution("3", "same"),
        solution("4", "alone"),
    )
    own = solved(
        tmp_path / "own.jsonl",
        solution("1", "cut", finish="length"),
        solution("1", "long", repeat=1, system="s"),
        solution("2", "right"),
        solution("3", "same"),
    )
    [pair], left_out = asdict(contrast("in-family", large, own)).values()
    assert Pair(**pair) == Pair("q1?", "short", "long", "1", "1", "s")
    assert left_out == (
        "2: no right and whole solution for the positive",
        "3: both solutions are the same text",
        "4: no right and whole solution for the negative",
    )


def test_opposites_leave_the_messages_out_of_the_pair(tmp_path: Path) -> None:
    brief = solved(tmp_path / "brief.jsonl", solution("1", "short", system="be brief"))
    wordy = solved(tmp_path / "wordy.jsonl", solution("1", "long", system="ramble"))
    assert contrast("opposites", brief, wordy).pairs == (Pair("q1?", "short", "long", "1", "1"),)
    wrong = solved(tmp_path / "wrong.jsonl", solution("1", "wrong", system="be brief", correct=False))
    assert contrast("opposites", wrong, wordy).pairs[0].positive == "wrong"
    cut = solved(tmp_path / "cut.jsonl", solution("1", "half", system="be brief", finish="length"))
    assert contrast("opposites", cut, wordy).left_out == ("1: no whole solution for the positive",)
    with pytest.raises(EdgeSteerError, match="under the same system message"):
        contrast("opposites", brief, brief)


def test_letters_end_with_the_letter_itself(tmp_path: Path) -> None:
    rows = [
        {"question": "Agree?\n\n (A) Yes\n (B) No", "answer_matching_behavior": " (A)",
         "answer_not_matching_behavior": " (B)", "more": 1},
        {"question": "Agree?", "answer_matching_behavior": "Yes", "answer_not_matching_behavior": "No"},
    ]  # fmt: skip
    lines, listed = tmp_path / "lines.jsonl", tmp_path / "listed.json"
    lines.write_text("\n".join(map(json.dumps, rows)))
    listed.write_text(json.dumps(rows, indent=1))
    expected = (
        Pair("Agree?\n\n (A) Yes\n (B) No", "(A", "(B", id="question 1"),
        Pair("Agree?", "Yes", "No", id="question 2"),
    )
    assert contrast("letters", lines).pairs == contrast("letters", listed).pairs == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no objects"),
        ("[1]", "holds no objects"),
        ('{"question": "q"}', "question 1: question, answer_matching_behavior"),
        ('{"question": "q", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(A)"}', "are equal"),
    ],
)
def test_other_files_hold_no_letters(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "letters.json"
    path.write_text(text)
    with pytest.raises(EdgeSteerError, match=said):
        contrast("letters", path)


@pytest.mark.parametrize(
    ("paragraph", "thought"),
    [
        ("2 + 3 = 5.", "execution"),
        ("\n Wait, no.", "reflection"),
        ("We wait for it.", "execution"),
        ("I should Make Sure of this.", "reflection"),
        ("That's correct.", "reflection"),
        ("That\u2019s incorrect.", "reflection"),
        ("Alternatively, divide.", "transition"),
        ("There is another way to see it.", "transition"),
        ("Let me check another approach.", "reflection"),
    ],
)
def test_thoughts_are_told_by_their_words(paragraph: str, thought: str) -> None:
    assert thought_of(paragraph) == thought


def test_reflection_is_left_for_the_nearest_step_that_executes(tmp_path: Path) -> None:
    path = solved(
        tmp_path / "own.jsonl",
        solution("1", REASONED, correct=False),
        solution("2", "Only steps.\n\nAnd more."),
        solution("3", "Wait.\n\nWait.\n\nWait."),
    )
    reflected = contrast("reflection", path)
    assert reflected.left_out == ("2: no reflection", "3: no paragraph of execution")
    assert [pair.id for pair in reflected.pairs] == ["1, reflection 1", "1, transition 2", "1, reflection 3"]
    for pair, (stop, nearest) in zip(
        reflected.pairs,
        [("Wait, is", "2 + 3"), ("Alternatively", "5 * 2"), ("Let me verify", "So \\boxed")],
        strict=True,
    ):
        assert REASONED.startswith(pair.negative)
        assert REASONED[len(pair.negative) :].startswith(stop)
        assert REASONED[len(pair.positive) :].startswith(nearest)
        assert pair.positive.endswith("\n") and pair.negative.endswith("\n")


def test_thoughts_of_all_solutions_are_classed_each_in_a_pair(tmp_path: Path) -> None:
    path = solved(
        tmp_path / "own.jsonl",
        solution("1", REASONED, correct=False, system="s"),
        solution("2", "Only steps.\n\nAnd more.\n\nAnd more."),
    )
    made = contrast("thoughts", path)
    assert not made.left_out
    assert [pair.id for pair in made.pairs] == [
        "1, execution 1; 1, reflection 2",
        "1, execution 3; 1, transition 4",
        "1, execution 6; 1, reflection 5",
        "2, execution 1; 1, reflection 2",
        "2, execution 2; 1, transition 4",
    ]
    last = made.pairs[-1]
    assert (last.question, last.system, last.positive) == ("q2?", None, "Only steps.\n\nAnd more.\n\n")
    assert (last.negative_question, last.negative_system) == ("q1?", "s")
    assert REASONED[len(last.negative) :].startswith("Alternatively")
    with pytest.raises(EdgeSteerError, match="has 1 thoughts of execution and 0 others"):
        contrast("thoughts", solved(tmp_path / "none.jsonl", solution("2", "Only steps.\n\nAnd more.")))


def test_class_means_are_over_every_thought_once(tiny: Reference, tmp_path: Path) -> None:
    """Against the states of each thought, read by hand, in classes of different size."""
    path = solved(
        tmp_path / "own.jsonl",
        solution("1", "Add.\n\nTwo.\n\nWait.\n\nThree.\n\nAlternatively, four."),
        solution("2", "Five.\n\nSix.\n\nSeven.\n\nEight."),
    )
    pairs = contrast("thoughts", path).pairs
    vector = extract(tiny, pairs, layers=[2], method="class_means")
    means = []
    for index, count in ((0, 5), (1, 2)):
        sides = {repr(pair.sides[index]): pair.sides[index].tokens(tiny) for pair in pairs}
        assert len(sides) == count
        means.append(sum(tiny.record((*a, *b), (2,))[2][-1] for a, b in sides.values()) / count)
    assert vector.directions[2] == pytest.approx(means[0] - means[1], abs=1e-4)
    assert extract(tiny, pairs, layers=[2]).directions[2] != pytest.approx(means[0] - means[1], abs=1e-4)


def test_of_a_reasoning_model_what_it_thinks_is_classed(tmp_path: Path) -> None:
    text = "<think>\nSo.\n\nStep one.\n\nWait, no.\n</think>\n\nLet me verify.\n\nAnswer."
    path = solved(tmp_path / "own.jsonl", solution("1", text))
    [pair] = contrast("reflection", path).pairs
    assert pair.negative == "<think>\nSo.\n\nStep one.\n\n"
    assert pair.positive == "<think>\nSo.\n\n"
    unopened = solved(tmp_path / "unopened.jsonl", solution("1", text.removeprefix("<think>\n")))
    assert contrast("reflection", unopened).pairs[0].negative == "So.\n\nStep one.\n\n"


def test_personas_differ_in_the_prompt_alone(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("I think  that\n\nWell, I\n")
    options: dict[str, Any] = {"personas": ("happy", "sad"), "template": "Be {persona}, {persona}!"}
    first, second = contrast("personas", path, **options).pairs
    assert first == Pair(
        "Be happy, happy!", "I think  that", "I think  that", id="text 1", negative_question="Be sad, sad!"
    )  # fmt: skip
    assert second.positive == second.negative == "Well, I"
    beginnings = contrast("personas", path, **options, beginnings=True).pairs
    assert [pair.positive for pair in beginnings] == ["I", "I think", "I think  that", "Well,", "Well, I"]
    with pytest.raises(EdgeSteerError, match="two personas are needed"):
        contrast("personas", path, personas=("happy", " "))
    with pytest.raises(EdgeSteerError, match=r"has no \{persona\}"):
        contrast("personas", path, personas=("happy", "sad"), template="Be!")
    with pytest.raises(EdgeSteerError, match="text 1: positive and negative are equal"):
        contrast("personas", path, personas=("happy", "happy"))


def test_plain_texts_are_paired_by_line_and_their_escapes_read(tmp_path: Path) -> None:
    positive, negative = tmp_path / "positive.txt", tmp_path / "negative.txt"
    positive.write_text('<|im_start|>system\\nAct \\"happy\\"\\x21\\\\n\n\nGood\n')
    negative.write_text("<|im_start|>system\\nAct sad\nBad\n")
    first, second = contrast("texts", positive, negative).pairs
    assert first.positive == '<|im_start|>system\nAct "happy"!\\n'
    assert first.negative == "<|im_start|>system\nAct sad"
    assert second == Pair("", "Good", "Bad", id="text 2", raw=True)
    negative.write_text("Bad\n")
    with pytest.raises(EdgeSteerError, match=r"positive.txt has 2 texts and .*negative.txt 1"):
        contrast("texts", positive, negative)


@pytest.mark.parametrize("kind", CONTRASTS)
def test_a_contrast_says_which_files_it_takes(kind: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match=r"0 files given; this contrast takes [12]: "):
        contrast(kind)


def test_the_pairs_are_extracted_with_their_own_prompts(tiny: Reference, tmp_path: Path) -> None:
    """Against states read by hand: the last token of each side behind its own prompt."""
    texts, positive, negative = (tmp_path / f"{name}.txt" for name in ("texts", "positive", "negative"))
    texts.write_text("Mia has 2\nBen has 30 books\n")
    positive.write_text("Mia has 2\nBen\n")
    negative.write_text("Ava has 31 books\nLeo\n")
    personas = contrast("personas", texts, personas=("happy", "sad")).pairs
    plain = contrast("texts", positive, negative).pairs
    spoken = tuple(replace(pair, system="Be kind.", negative_system="Be brief.") for pair in personas)
    for pairs in (personas, plain, spoken):
        vector = extract(tiny, pairs, layers=(1, 3))
        for layer in (1, 3):
            states = []
            for pair in pairs:
                for sign, side in zip((1, -1), pair.sides, strict=True):
                    prompt, answer = side.tokens(tiny)
                    states.append(sign * tiny.record((*prompt, *answer), (layer,))[layer][-1])
            assert vector.directions[layer] == pytest.approx(sum(states) / len(pairs), abs=1e-4)


def test_own_samples_are_candidates_of_the_models_own_solution(tmp_path: Path) -> None:
    dense = solved(
        tmp_path / "dense.jsonl",
        solution("1", "one line", system="be dense"),
        solution("1", "wrong", repeat=1, correct=False),
        solution("1", "another", repeat=2),
        solution("1", "one line", repeat=3),
        solution("2", "the same"),
        solution("4", "no own"),
    )
    own = solved(tmp_path / "own.jsonl", solution("1", "long", system="s"), solution("2", "the same"))
    made = contrast("own-samples", dense, own)
    assert made.pairs == (
        Pair("q1?", "one line", "long", "1", "1, sample 1", "s"),
        Pair("q1?", "another", "long", "1", "1, sample 2", "s"),
    )
    assert len({pair.negative_digest for pair in made.pairs}) == 1, "so that the likeliest can be chosen"
    assert made.left_out == ("2: no other right sample under the instruction",)


def test_line_breaks_become_spaces_and_nothing_else_changes(tmp_path: Path) -> None:
    text = "First:\n\n- 2 + 3 = 5.  Then\n  5 * 2 = 10.\n"
    own = solved(tmp_path / "own.jsonl", solution("1", text, system="s"), solution("2", "on one line"))
    [pair], left_out = contrast("line-breaks", own).pairs, contrast("line-breaks", own).left_out
    assert pair == Pair("q1?", "First: - 2 + 3 = 5.  Then 5 * 2 = 10.", text, "1", "1", "s")
    assert pair.positive.split() == text.split()
    assert left_out == ("2: has no line break",)


def test_a_compression_leaves_out_sentences_by_its_seed_but_never_the_last(tmp_path: Path) -> None:
    sentences = [f"Step {n} gives {n}.5." for n in range(10)]
    own = solved(tmp_path / "own.jsonl", solution("1", "\n\n".join(sentences)), solution("2", "Only one."))
    made = [contrast("compressions", own, seed=seed) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    for one in made:
        [pair] = one.pairs
        left = pair.positive.split("\n\n")
        assert len(left) == 7
        assert left == [sentence for sentence in sentences if sentence in left]
        assert left[-1] == sentences[-1]
        assert one.left_out == ("2: has but one sentence",)
