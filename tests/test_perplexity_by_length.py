"""Texts cut to their first tokens before their perplexity is taken."""

import math

import numpy as np
import pytest
from perplexity_by_length import log_mean_perplexity

TEXTS = [np.log(np.array(values)) for values in ([8.0, 2.0, 2.0, 2.0], [4.0, 1.0], [])]


def test_a_cut_leaves_out_the_texts_that_are_shorter() -> None:
    assert log_mean_perplexity(TEXTS, 4) == (pytest.approx(math.log(64) / 4), 1)
    assert log_mean_perplexity(TEXTS, 5) == (None, 0)


def test_a_longer_text_of_the_same_kind_has_a_lower_perplexity() -> None:
    assert log_mean_perplexity(TEXTS[:1], 2)[0] == pytest.approx(math.log(4))
    assert log_mean_perplexity(TEXTS, 1) == (pytest.approx(math.log((8 + 4) / 2)), 2)
    assert log_mean_perplexity(TEXTS, None) == (pytest.approx(math.log((64**0.25 + 2) / 2)), 2)
