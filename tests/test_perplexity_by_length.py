"""Texts cut to their first tokens before their perplexity is taken."""

import math

import numpy as np
import pytest
from perplexity_by_length import log_mean_perplexity

TEXTS = [np.log(np.array(values)) for values in ([8.0, 2.0, 2.0, 2.0], [4.0, 1.0], [])]


@pytest.mark.parametrize(
    ("length", "log_mean", "texts"),
    [(1, math.log((8 + 4) / 2), 2), (4, math.log(64) / 4, 1), (None, math.log((64**0.25 + 2) / 2), 2)],
)
def test_texts_are_cut_and_shorter_ones_left_out(length: int | None, log_mean: float, texts: int) -> None:
    value, count = log_mean_perplexity(TEXTS, length)
    assert value == pytest.approx(log_mean)
    assert count == texts


def test_no_text_of_the_length_has_no_figure() -> None:
    assert log_mean_perplexity(TEXTS, 5) == (None, 0)
