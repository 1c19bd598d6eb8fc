"""Topics: what is sent, what is kept, and what is asked again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from paths import ABACUS

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import SteeringVector
from edge_steer.lens.reading import Reading, read_vector
from edge_steer.lens.scores import NullChoice
from edge_steer.lens.topics import PROMPT, name_topics, prompt_of
from edge_steer.lens.unembedding import read_unembedding
from edge_steer.llama.engine import Engine
from edge_steer.pairs.endpoint import OnReply, Reply
from edge_steer.pairs.rewrite import ModelRewriter, Rewriter


@dataclass
class Answers:
    """A rewriter with answers at hand; one that it lacks is a problem."""

    texts: list[str]
    asked: list[str] = field(default_factory=list)
    identity: Mapping[str, object] = field(default_factory=lambda: {"name": "answers"})

    def ask(self, prompts: Sequence[str], on_reply: OnReply) -> None:
        for index, prompt in enumerate(prompts):
            self.asked.append(prompt)
            on_reply(index, Reply(self.texts.pop(0)) if self.texts else Reply("", "no answer"))

    def drawing(self, candidate: int) -> Rewriter:
        raise NotImplementedError(candidate)


@pytest.fixture(scope="module")
def reading() -> Reading:
    unembedding = read_unembedding(ABACUS / "abacus-F16.gguf")
    matrix = unembedding.tensor.whole()
    vector = SteeringVector({0: matrix[40], 2: np.zeros(256, np.float32), 3: matrix[123]}, unembedding.model)
    return read_vector(vector, unembedding, top=3, null=NullChoice(2))


def test_the_papers_prompt_is_sent_with_the_tokens(reading: Reading) -> None:
    prompt = prompt_of(reading.layers[0])
    assert prompt.startswith("You will be given a list of tokens together with a score.\nYou should translate all non-")
    assert prompt.removeprefix(PROMPT).splitlines()[0].endswith(" 1.0000")
    assert len(prompt.removeprefix(PROMPT).splitlines()) == 3


def test_an_answer_is_kept_and_a_problem_is_asked_again(reading: Reading, tmp_path: Path) -> None:
    path = tmp_path / "topics.jsonl"
    first, second = Answers(["<think>hm</think> numbers"]), Answers(["names"])
    assert [(one.layer, one.text, one.problem) for one in name_topics(reading, first, path)] == [
        (0, "numbers", ""),
        (3, "", "no answer"),
    ]
    assert [one.text for one in name_topics(reading, second, path)] == ["numbers", "names"]
    assert second.asked == [prompt_of(reading.layers[2])]
    third = Answers([])
    assert [one.text for one in name_topics(reading, third, path)] == ["numbers", "names"]
    assert not third.asked
    with pytest.raises(EdgeSteerError):
        name_topics(reading, Answers([], identity={"name": "another"}), path)


def test_a_model_on_this_machine_names_them(reading: Reading, tmp_path: Path) -> None:
    options = EngineOptions(threads=1, context=512, parallel=2, gpu_layers=0)
    with Engine.load(ABACUS / "abacus-F16.gguf", options) as engine:
        topics = name_topics(reading, ModelRewriter(engine, max_tokens=8), tmp_path / "topics.jsonl")
    assert [one.layer for one in topics] == [0, 3]
    assert all(one.text or one.problem for one in topics)
