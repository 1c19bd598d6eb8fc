import json
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from paths import ABACUS, DATA

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import log_softmax
from edge_steer.llama.engine import Engine
from edge_steer.pairs.checks import check_pairs, measure_pairs
from edge_steer.pairs.criteria import Check, Criteria, reasons_to_drop
from edge_steer.pairs.likelihood import OWN, REWRITE, likelihoods, score
from edge_steer.pairs.numbers import changed_numbers, computed_numbers
from edge_steer.pairs.pair import Pair, read_pairs
from edge_steer.pairs.solutions import Solution
from edge_steer.tasks.grading import Graders

DENSE = "2 + 3 = 5, so the answer is \\boxed{5}."
SPARSE = "Mia has 2.\n\n2 + 3 = 5.\n\nThe answer is \\boxed{5}."
SOLVED = [
    Solution(pair.id or "", 0, pair.question, pair.question, None, "1", pair.negative, 9, True, "stop")
    for pair in read_pairs(ABACUS / "pairs.jsonl")[:4]
]


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(workers=1) as graders:
        yield graders


def figures(name: str = "a", **fields: object) -> Check:
    base = Check(name, True, True, True, 1, 2, 10, 12, (), ())
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2 + 3 = 5.", ["5"]),
        ("3 * 4 = 2 * 6 = 12", ["12"]),
        ("5 = 2 + 3 and x = 4 - y", []),
        ("48 / 4 = 12 and 7 = 14/2", ["12", "14/2"]),
        ("so x = \\frac{1}{2}, y = \\dfrac{3}{4}", ["1/2", "3/4"]),
        ("cost = \\$1,200.50 and total = $18$", ["1,200.50", "18"]),
        ("a = \\boxed{7}, \\[ b = \\text{8} \\]", ["7", "8"]),
        ("x = -5, y = \u22126, z \\approx 3.14, w \u2248 2", ["5", "6", "3.14", "2"]),
        ("x >= 3, y <= 4, z != 5, a == 6, b := 7, c => 8", []),
        ("= 10^2 = 100, = 2 \\times 3, = 4 \\cdot 5 = 20", ["100", "20"]),
        ("= 7 - then we are done", ["7"]),
        ("= 1{,}000 and = 1,000 and = 1000.0", ["1,000"]),
        ("= 0.5 and = 1/2 and = .50", ["0.5"]),
        ("= 3/0 and = " + "9" * 5000, []),
        ("=\n\n12 apples, = 5x, = 40%", ["12", "5", "40"]),
    ],
)
def test_computed_numbers_are_what_computations_end_in(text: str, numbers: list[str]) -> None:
    assert list(computed_numbers(text).values()) == numbers


def test_a_number_is_kept_wherever_it_stands_and_given_ones_are_not_added() -> None:
    own = "3 * 4 = 12.\n\n12 + 5 = 17.\n\n17 - 1 = 16."
    told = "3 * 4 gives 12, and 12 + 5 = 17; so \\boxed{16}."
    assert changed_numbers(Pair("q", told, own)) == ((), ())
    assert changed_numbers(Pair("q", "3 * 4 = 12, so x = 40.", own)) == (("17", "16"), ("40",))
    assert changed_numbers(Pair("There are 40.", "x = 40, 12, 17, 16", own)) == ((), ())
    assert changed_numbers(Pair("q", "a = 1/2", "a = 0.50\n\nb = 3/4")) == (("3/4",), ())


def test_both_answers_are_graded_and_the_density_measured(graders: Graders) -> None:
    right, wrong, unknown, boxless = measure_pairs(
        [
            Pair("q", DENSE, SPARSE, "5", "a"),
            Pair("q", DENSE, SPARSE, "6"),
            Pair("q", DENSE, "no box"),
            Pair("q", DENSE.replace("5", "4"), SPARSE),
        ],
        lambda text: len(text.split()),
        graders,
    )
    assert right.name == "a" and right.positive_right and right.negative_right and right.known
    assert (right.positive_steps, right.negative_steps) == (1, 3)
    assert (right.positive_tokens, right.negative_tokens) == (10, 12)
    assert right.density_ratio == pytest.approx(10 / 4)
    assert wrong.name == "pair 2" and not wrong.positive_right and not wrong.negative_right
    assert not unknown.known
    assert boxless.known and boxless.negative_right and not boxless.positive_right
    [letter] = measure_pairs([Pair("q", "so \\boxed{B}", "hm\n\nso \\boxed{B}", "B")], len, graders, "letter")
    assert letter.positive_right


def test_the_bundled_pairs_pass(graders: Graders) -> None:
    pairs = read_pairs(ABACUS / "pairs.jsonl")
    assert not any(reasons_to_drop(measure_pairs(pairs, len, graders), Criteria()))


def test_the_nll_is_that_of_the_logits(engine: Engine) -> None:
    pair = read_pairs(ABACUS / "pairs.jsonl")[0]
    [scored] = score(engine, [pair], [figures()])
    for side, measured in zip(pair.sides, (scored.positive_nll, scored.negative_nll), strict=True):
        prompt, answer = side.tokens(engine)
        logits = log_softmax(engine.logits((*prompt, *answer), len(prompt)))[:-1]
        assert measured == pytest.approx(-np.mean([row[token] for row, token in zip(logits, answer, strict=True)]))
    assert scored.nll_ratio and scored.positive_nll and scored.negative_nll
    assert scored.nll_ratio == pytest.approx(scored.positive_nll / scored.negative_nll)
    assert scored.nll_ratio > 1  # greedy solutions are as likely as texts get


def test_a_pair_that_does_not_fit_is_left_unscored_and_dropped_only_if_the_nll_matters(engine: Engine) -> None:
    fits = Pair("q", DENSE, SPARSE)
    scored = score(engine, [Pair("q", "a " * 3000, "b"), fits], [figures("long"), figures("short")])
    assert scored[0].nll_ratio is None and "tokens" in scored[0].unscored
    assert reasons_to_drop(scored, Criteria()) == [(), ()]
    [long], short = reasons_to_drop(scored, Criteria(max_nll_ratio=1e9))
    assert long.startswith("not scored: ") and not short


def test_figure_3_compares_the_sources_on_the_same_questions(engine: Engine) -> None:
    pairs = read_pairs(ABACUS / "pairs.jsonl")[:6]
    scored = score(engine, pairs, [figures(str(i)) for i in range(6)])
    solved = Solution("i", 0, "q", pairs[0].question, None, "1", pairs[1].positive, 9, False, "stop")
    traces = [replace(solved, prompt=pair.question, text=pair.negative) for pair in pairs[:3]]
    other = [solved, replace(solved, text=pairs[0].positive), replace(solved, prompt="elsewhere")]
    own, rewrite, same, alien = likelihoods(engine, pairs, scored, {"same": traces, "alien": other})
    assert (own.source, rewrite.source) == (OWN, REWRITE)
    assert own.ratio == 1
    assert own.interval and own.interval[0] < own.mean < own.interval[1]
    assert rewrite.mean == pytest.approx(np.mean([row.positive_nll for row in scored if row.positive_nll]))
    assert (len(same.values), same.interval) == (3, None)
    assert same.ratio == pytest.approx(1, abs=0.02)
    assert alien.values.keys() == {"0"}
    assert alien.mean > 10 * own.mean  # an answer to another question
    assert scored[0].negative_nll and alien.ratio == pytest.approx(alien.mean / scored[0].negative_nll)
    with pytest.raises(EdgeSteerError, match="alien has no solution to any question"):
        likelihoods(engine, pairs, scored, {"alien": other[2:]})
    with pytest.raises(EdgeSteerError, match="no pair has an NLL"):
        likelihoods(engine, pairs, [figures()] * 6, {})


@pytest.mark.parametrize(
    ("check", "criteria", "reasons"),
    [
        (figures(), Criteria(), ()),
        (figures(known=False), Criteria(), ("no answer to grade by",)),
        (figures(positive_right=False), Criteria(), ("the rewrite's answer is wrong",)),
        (figures(negative_right=False), Criteria(), ("the own solution's answer is wrong",)),
        (figures(positive_tokens=6), Criteria(), ("not denser: 1.00 times the density",)),
        (
            figures(dropped=("1", "2"), added=("3",)),
            Criteria(),
            ("computed numbers dropped: 1, 2", "computed numbers added: 3"),
        ),
        (figures(dropped=("1",)), Criteria(numbers=False), ()),
        (figures(positive_nll=3.0, negative_nll=2.0), Criteria(max_nll_ratio=1.5), ()),
        (
            figures(positive_nll=3.2, negative_nll=2.0),
            Criteria(max_nll_ratio=1.5),
            ("its NLL is 1.60 times the own solution's, above 1.5",),
        ),
    ],
)
def test_each_drop_has_its_reason(check: Check, criteria: Criteria, reasons: tuple[str, ...]) -> None:
    assert reasons_to_drop([check], criteria) == [reasons]


def test_the_lowest_nll_are_kept_of_those_that_pass() -> None:
    rows = [figures(positive_nll=nll, negative_nll=1.0) for nll in (0.5, 0.4, 0.3, 0.2)]
    rows[3] = replace(rows[3], positive_right=False)
    first, *passed, wrong = reasons_to_drop(rows, Criteria(keep_lowest=2))
    assert first == ("its NLL of 0.500 is not among the 2 lowest",)
    assert passed == [(), ()]
    assert wrong == ("the rewrite's answer is wrong",)
    with pytest.raises(EdgeSteerError, match="no pair has an NLL to choose by"):
        reasons_to_drop([figures()], Criteria(keep_lowest=1))


def test_of_the_candidates_for_one_negative_the_likeliest_that_passes_is_kept() -> None:
    nlls = {"a": 0.5, "a2": 0.4, "a3": 0.1, "b": 0.9, "b2": 0.9, "c": 0.8}
    rows = [
        figures(name, positive_nll=nll, negative_nll=1.0, negative_digest=name[0], positive_right=name != "a3")
        for name, nll in nlls.items()
    ]
    reasons = dict(zip(nlls, reasons_to_drop(rows, Criteria(best_candidate=True)), strict=True))
    assert [name for name, why in reasons.items() if not why] == ["a2", "b", "c"]
    assert reasons["a"] == ("its NLL of 0.500 is not below that of a2",)
    lowest = reasons_to_drop(rows, Criteria(best_candidate=True, keep_lowest=2))
    assert [row.name for row, why in zip(rows, lowest, strict=True) if not why] == ["a2", "c"]
    with pytest.raises(EdgeSteerError, match="no pair has an NLL to choose by"):
        reasons_to_drop([figures()], Criteria(best_candidate=True))


def test_on_human_solutions_the_annotated_results_are_found_and_merging_changes_nothing() -> None:
    """GSM8K marks each result of a computation as <<expression=result>>, which the text around it repeats."""
    path = DATA / "gsm8k_train.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not at hand; set EDGE_STEER_DATA to a folder with the published files")
    marked = found = 0
    for line in path.read_text().splitlines()[:1000]:
        row = json.loads(line)
        told = re.sub(r"<<[^>]*>>", "", row["answer"]).partition("####")[0].strip()
        results = re.findall(r"=(-?[0-9.,]+)>>", row["answer"])
        computed = computed_numbers(told)
        marked += len(results)
        found += sum(abs(Fraction(result.replace(",", ""))) in computed for result in results)
        if "\n" in told:
            merged = Pair(row["question"], told.replace("\n", " "), told)
            assert changed_numbers(merged) == ((), ())
    assert marked > 2000
    assert found / marked > 0.99


def test_a_report_says_what_passes_and_why_the_rest_does_not(engine: Engine, graders: Graders) -> None:
    bundled = read_pairs(str(ABACUS / "pairs.jsonl"))[:4]
    wrong = replace(bundled[0], positive=bundled[1].positive, id="wrong")
    report = check_pairs(
        [*bundled, wrong], backend=engine, criteria=Criteria(keep_lowest=2), graders=graders, traces={"own": SOLVED}
    )
    assert [check.positive_tokens for check in report.checks] == [
        len(engine.encode(pair.positive, start=False)) for pair in report.pairs
    ]
    by_nll = sorted(range(4), key=lambda i: report.checks[i].positive_nll or 0)
    assert report.passing == tuple(bundled[i] for i in sorted(by_nll[:2]))
    assert report.dropped.keys() == {"wrong", *(report.checks[i].name for i in by_nll[2:])}
    assert report.dropped["wrong"][0] == "the rewrite's answer is wrong"
    assert [row.source for row in report.likelihoods] == [OWN, REWRITE, "own"]
    for record, check, reasons in zip(report.records(), report.checks, report.reasons, strict=True):
        assert record["nll_ratio"] == check.nll_ratio and record["reasons"] == reasons
        assert record["positive_nll"] == check.positive_nll
    negative, positive = report.means["density"]
    assert positive == pytest.approx(np.mean([check.positive_density for check in report.checks]))
    assert negative == pytest.approx(np.mean([check.negative_density for check in report.checks]))


def test_without_a_model_words_are_counted_and_nothing_can_be_scored() -> None:
    pairs = [Pair("q", DENSE, SPARSE, "5")]
    report = check_pairs(pairs)
    assert (report.passing, report.dropped, report.likelihoods) == (tuple(pairs), {}, ())
    assert report.checks[0].positive_tokens == len(DENSE.split())
    for settings in ({"criteria": Criteria(max_nll_ratio=2)}, {"traces": {"a": SOLVED}}):
        with pytest.raises(EdgeSteerError, match="an NLL is that of a model"):
            check_pairs(pairs, **settings)


def test_pairs_of_any_kind_are_judged_by_their_nll_alone(engine: Engine, graders: Graders) -> None:
    pairs = [Pair("", text, "Ben is sad.", raw=True) for text in ("Mia has 2 apples.", "Mia xyz qqq.", "Mia")]
    criteria = Criteria(numbers=False, keep_lowest=1, right=False, denser=False)
    report = check_pairs(pairs, backend=engine, criteria=criteria, graders=graders)
    assert report.passing == (pairs[0],)
    assert [check.unscored for check in report.checks[:2]] == ["", ""]
    tokens = engine.encode(pairs[0].positive)
    without_bos = tokens if engine.encode("") else engine.encode(pairs[0].positive, start=False)
    assert report.checks[0].positive_nll == pytest.approx(engine.nll(without_bos, 1).mean())
