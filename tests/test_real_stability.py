"""Stability on real models: its settings, draws that share no pair, and what the choice on dev is worth."""

import numpy as np
import pytest
from paths import ROOT
from real_long import read_long
from real_settings import read_settings
from real_stability import disjoint_draws
from stability_choice import resampled_choices
from stability_settings import read_stability

from edge_steer.core.vector import ModelIdentity
from edge_steer.evaluation.sweep_cells import sweep_cells
from edge_steer.extraction.extract import PairStates
from edge_steer.tasks.rows import Row

SETTINGS = ROOT / "benchmarks" / "settings"


def row(method: str, problem: int, tokens: int) -> Row:
    return Row("gsm8k", f"{problem}", 0, method, "", "7", tokens, 1, True, "7", "stop", "", 0.0, None)


def test_settings_are_read_and_sizes_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    asked = read_stability(SETTINGS / "smollm2-135m-instruct-stability.toml")
    test = asked.experiment.test
    assert asked.behind >= test.block * test.blocks
    assert asked.temperature and asked.draws and asked.choice
    problems = [part.problems for part in (asked.temperature, asked.draws, asked.choice)]
    assert asked.behind + max(problems) <= test.draw
    assert max(asked.draws.counts) <= asked.draws.pool
    long = read_long(SETTINGS / "smollm2-135m-instruct-long.toml")
    assert long.tokens >= 4000
    assert long.tokens % long.window == 0


def test_draws_share_no_pair() -> None:
    """The direction of a draw is the mean of its pairs' differences, here the unit vectors."""
    pairs = 10
    states = np.zeros((2, 1, pairs, pairs), dtype=np.float32)
    states[0, 0] = np.eye(pairs)
    states[1, 0, :, 0] = 1e-3
    model = ModelIdentity("tiny", "llama", pairs, 1, "0")
    of_pairs = PairStates(states[0], states[1], ((), ()), (0,), model, "last", "")
    drawn = disjoint_draws(of_pairs, 3, 5)
    assert len(drawn) == 3
    used = [{*np.flatnonzero(vector.directions[0] > 0.1 * vector.directions[0].max())} for vector in drawn]
    assert [len(one) for one in used] == [3, 3, 3]
    assert not (used[0] & used[1] | used[0] & used[2] | used[1] & used[2])
    assert len(disjoint_draws(of_pairs, 3, 2)) == 2


def test_a_cell_that_is_always_shorter_is_always_chosen_and_does_what_it_promises() -> None:
    rule = read_settings(SETTINGS / "smollm2-135m-instruct.toml").dev
    cells = sweep_cells((3,), (0.1, 0.2))
    plain, weak, strong = (cell.name for cell in cells)
    dev = [row(name, n, 100 + n - less) for name, less in ((plain, 0), (weak, 30), (strong, 20)) for n in range(10)]
    test = {name: [row(name, n, tokens) for n in range(5)] for name, tokens in ((plain, 100), (weak, 90), (strong, 60))}
    figures = resampled_choices(cells, dev, test, rule, resamples=4)
    assert figures["on test"] == {plain: 0, weak: -10, strong: -40}
    assert figures["choices"] == [{"cell": weak, "promised": -30, "on others": -30, "on test": -10}] * 4
