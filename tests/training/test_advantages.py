"""Rewards to advantages: both baselines by their definitions, and what a batch is divided by."""

import numpy as np
import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.training.advantages import advantages, normaliser, rewarded_alike, shuffled
from edge_steer.training.settings import PAPER_MODELS, RlooSettings, preset_settings

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    for problem, row in zip(REWARDS, advantages(REWARDS), strict=True):
        expected = [reward - np.delete(problem, place).mean() for place, reward in enumerate(problem)]
        assert row == pytest.approx(expected)


def test_the_two_baselines_differ_by_a_factor() -> None:
    assert advantages(REWARDS, "mean") == pytest.approx(REWARDS - REWARDS.mean(axis=1, keepdims=True))
    assert advantages(REWARDS) == pytest.approx(advantages(REWARDS, "mean") * 4 / 3)


def test_answers_rewarded_alike_have_no_advantage() -> None:
    assert not advantages(REWARDS)[1].any()
    assert rewarded_alike(REWARDS) == pytest.approx(1 / 3)


def test_the_token_form_divides_by_tokens_and_the_sequence_form_by_answers() -> None:
    assert normaliser([3, 5, 2], "token") == 10
    assert normaliser([3, 5, 2], "sequence") == 3


def test_shuffled_rewards_are_the_same_rewards_elsewhere() -> None:
    dealt = shuffled(REWARDS, 3)
    assert sorted(dealt.ravel()) == sorted(REWARDS.ravel())
    assert (dealt == shuffled(REWARDS, 3)).all()
    assert any((shuffled(REWARDS, seed) != REWARDS).any() for seed in range(3))


def test_the_warm_up_is_linear_and_the_first_step_learns() -> None:
    settings = RlooSettings(steps=100, learning_rate=0.3)
    assert settings.warmup_steps == 3
    assert [settings.rate(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    assert RlooSettings(steps=10, warmup=0, learning_rate=0.3).rate(0) == pytest.approx(0.3)


def test_the_papers_settings_are_those_of_its_models() -> None:
    llama = preset_settings("paper", "meta-llama/Llama-3.1-8B")
    assert (llama.learning_rate, llama.generations, llama.prompts, llama.steps) == (3e-4, 64, 128, 314)
    assert (llama.clip, llama.kl, llama.loss, llama.warmup_steps) == (2.0, 0.0, "token", 10)
    assert preset_settings("paper", "models/qwen2.5-math-7b").max_tokens == 4096
    assert preset_settings("paper", "another/model").learning_rate == 1e-3
    assert preset_settings("laptop", "another/model") == RlooSettings()
    assert preset_settings("paper", "Qwen2.5-Math-1.5B", "full").learning_rate == 2e-6
    assert preset_settings("paper", "meta-llama/Llama-3.1-8B-Instruct", "lora").learning_rate == 5e-5
    assert preset_settings("laptop", "another/model", "full").learning_rate == 1e-6
    assert len(PAPER_MODELS) == 7


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"generations": 1}, "at least 2"),
        ({"prompts": 0}, "prompts is 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"clip": 0.0}, "clip is 0"),
        ({"loss": "words"}, "token, sequence"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(EdgeSteerError, match=complaint):
        RlooSettings(**changes)  # type: ignore[arg-type]
