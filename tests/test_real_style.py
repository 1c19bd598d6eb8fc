"""The style of a shipped vector: what counts as a mark, and what is left of a solution without them."""

import pytest
from paths import ROOT
from plain_text import count_marks, plain
from style_settings import read_style

SOLUTION = r"""## Solution

- **First**, the cost is:
\[
3 \text{ boxes} \times \frac{12}{4} = 9
\]

It costs \(\$9\), so \(\boxed{9}\)."""


def test_a_plain_solution_has_every_word_and_no_mark() -> None:
    words = plain(SOLUTION).split()
    assert " ".join(words) == r"Solution First, the cost is: 3 boxes * 12 / 4 = 9 It costs $9, so \boxed{9}."


@pytest.mark.parametrize(
    ("text", "marks"), [(SOLUTION, 13), (plain(SOLUTION), 0), ("1. 3 - 2 = 1\n2. 2 * 3 = 6", 0), (r"\(\boxed{9}\)", 2)]
)
def test_marks_are_counted_but_for_the_box(text: str, marks: int) -> None:
    assert count_marks(text) == marks


@pytest.mark.parametrize("kind", ["plain", "terse"])
def test_test_problems_of_a_style_are_those_that_no_experiment_asked(kind: str) -> None:
    style = read_style(ROOT / "benchmarks" / "settings" / f"qwen2.5-coder-0.5b-instruct-{kind}.toml")
    assert style.kind == kind
    [seen] = style.experiment.test.seen
    assert seen.problems >= style.experiment.test.block * style.experiment.test.blocks
