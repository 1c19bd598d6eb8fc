"""Other files of a model against its twin: what is compared with what."""

import pytest
from real_files import difference, figures_of, select, table

from edge_steer.tasks.rows import Row


def row(method: str, problem: int, tokens: int, text: str = "") -> Row:
    return Row("gsm8k", f"{problem}", 0, method, "", text, tokens, 1, True, "7", "stop", "", 0.0, None)


def rows(unsteered: list[int], terse: list[int], text: str = "") -> dict[str, list[Row]]:
    return {
        name: [row(name, n, tokens, text) for n, tokens in enumerate(counts)]
        for name, counts in (("unsteered", unsteered), ("terse", terse))
    }


def test_a_file_that_is_shortened_more_than_the_twin_says_by_how_much() -> None:
    twin, file = rows([100, 120, 140, 90, 80], [90, 110, 130, 80, 70]), rows([100] * 5, [85] * 5)
    assert difference(file, twin, "terse") == {"mean": -5.0, "interval": (-5.0, -5.0)}


def test_answers_that_are_the_twins_are_counted() -> None:
    twin, file = (rows([4] * 5, [3] * 5, "It is 7.") for _ in range(2))
    file["terse"][1] = row("terse", 1, 3, "Seven.")
    figures = figures_of(file, twin)
    assert [figures[name]["same text as the twin"] for name in ("unsteered", "terse")] == [5, 4]
    assert figures["unsteered"]["against unsteered"] is None
    assert figures["terse"]["against unsteered"]["differences"]["tokens"]["mean"] == pytest.approx(-1)
    summary = {
        "Q8_0": {"methods": figures, "minus the twin's change in tokens": {"terse": difference(file, twin, "terse")}}
    }
    assert table(summary).splitlines()[-1] == "| Q8_0 | terse | +0.0 (+0.0 to +0.0) | 4 |"


def test_rows_of_the_twin_are_those_of_the_same_problems() -> None:
    twin = [row("terse", n, 10 * n) for n in (3, 2, 1, 0)]
    assert [one.tokens for one in select(twin, [row("terse", n, 1) for n in (1, 2)])] == [10, 20]
