"""Verdicts on figures with intervals, and which tolerances a type has."""

import itertools

import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.quants import QUANTS
from edge_steer.parity.findings import Verdict, finding, overall
from edge_steer.parity.tolerances import TOLERANCES, tolerance_of


@pytest.mark.parametrize(
    ("value", "interval", "at_most", "verdict"),
    [
        (0.5, (0.4, 0.6), True, "pass"),
        (1.5, (1.4, 1.6), True, "fail"),
        (0.9, (0.8, 1.1), True, "not enough data"),
        (1.1, (0.9, 1.2), True, "not enough data"),
        (1.5, (1.4, 1.6), False, "pass"),
        (0.5, (0.4, 0.6), False, "fail"),
        (1.1, (0.9, 1.2), False, "not enough data"),
        (0.5, None, True, "not enough data"),
        (1.5, None, True, "fail"),
        (0.5, None, False, "fail"),
    ],
)
def test_a_verdict_takes_the_interval(
    value: float, interval: tuple[float, float] | None, at_most: bool, verdict: Verdict
) -> None:
    assert finding("x", value, interval, 1.0, at_most=at_most).verdict == verdict


def test_what_is_no_estimate_needs_no_interval() -> None:
    assert finding("x", 0.5, None, 1.0, exact=True).verdict == "pass"
    assert finding("x", 1.5, None, 1.0, exact=True).verdict == "fail"


def test_the_worst_verdict_is_that_of_all() -> None:
    assert overall(["pass", "not enough data", "fail"]) == "fail"
    assert overall(["pass", "not enough data"]) == "not enough data"
    assert overall(["pass"]) == "pass"
    assert overall([]) == "not enough data"


def test_tolerances_can_be_changed() -> None:
    assert tolerance_of("Q8_0") == TOLERANCES["Q8_0"]
    changed = tolerance_of("Q8_0", {"kl": 1.0})
    assert (changed.kl, changed.cosine) == (1.0, TOLERANCES["Q8_0"].cosine)
    assert tolerance_of("IQ1_S", {"kl": 3.0}).cosine == TOLERANCES["Q2_K"].cosine
    with pytest.raises(EdgeSteerError, match="no tolerance is known for IQ1_S"):
        tolerance_of("IQ1_S")
    with pytest.raises(EdgeSteerError, match="no tolerance 'kll'"):
        tolerance_of("Q8_0", {"kll": 1.0})


def test_coarser_types_are_allowed_more() -> None:
    ladder = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
    for finer, coarser in itertools.pairwise(ladder):
        a, b = TOLERANCES[finer], TOLERANCES[coarser]
        assert a.kl < b.kl
        assert a.cosine > b.cosine
        assert a.norm <= b.norm
        assert a.accuracy <= b.accuracy
    assert {*TOLERANCES} <= {*QUANTS}


def test_a_finding_is_one_sentence() -> None:
    low = finding("effect: cosine", 0.912, (0.9, 0.95), 0.93, at_most=False)
    assert str(low) == "effect: cosine is 0.912 (0.9..0.95); at least 0.93 allowed: not enough data"
    assert str(finding("x", 2.0, None, 1.5)) == "x is 2; at most 1.5 allowed: fail"
