"""The loop on the bundled model: what it logs, that a kill does not change it, what it refuses."""

import gc
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ABACUS
from unsure_problems import unsure_task

from edge_steer.core.backend import PLAIN, EngineOptions, Request
from edge_steer.core.errors import EdgeSteerError, VectorError
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.reference.model import Reference
from edge_steer.storage.records import read
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import Task
from edge_steer.training.policy import GradientOptions, Policy
from edge_steer.training.records import LOG, STATE, TrainingLog
from edge_steer.training.rloo import ROLLOUTS, train_rloo
from edge_steer.training.rollouts import Sampler, problems_of
from edge_steer.training.settings import RlooSettings
from edge_steer.training.trainables import TrainedVector
from edge_steer.training.trainee import Trainee
from edge_steer.vectors import native

SETTINGS = RlooSettings(steps=2, prompts=2, generations=3, max_tokens=190, learning_rate=1.0)
SAVED = "state-1.npz"


@pytest.fixture(scope="module")
def trainee(bundled: Reference, bundled_f16: Path) -> Iterator[Trainee]:
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        yield Trainee(engine, bundled)


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders() as graders:
        yield graders


@pytest.fixture(scope="module")
def task() -> Task:
    return unsure_task()


def trained(*arguments: Any, **options: Any) -> SteeringVector:
    change = train_rloo(*arguments, **options)
    assert isinstance(change, SteeringVector)
    return change


@pytest.fixture(scope="module")
def run(
    trainee: Trainee, task: Task, graders: Graders, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SteeringVector]:
    """A training of two steps that nothing disturbed, with the state after one."""
    folder = tmp_path_factory.mktemp("run")

    def keep_state(step: int, _change: object) -> None:
        if step == 1:
            shutil.copy(folder / STATE, folder / SAVED)

    return folder, trained(trainee, task, SETTINGS, folder, graders=graders, on_step=keep_state)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The log without the seconds."""
    return [{name: value for name, value in step.items() if name != "seconds"} for step in read(folder / LOG)[1]]


def test_a_step_is_logged_whole(run: tuple[Path, SteeringVector], trainee: Trainee) -> None:
    folder, vector = run
    log = TrainingLog.read(folder)
    assert [step.step for step in log.steps] == [1, 2]
    for step in log.steps:
        assert 0 <= step.reward <= 1
        assert step.boxed == step.finished == 1
        assert 100 < step.length < 190
        assert step.seconds.swap < 0.01 * step.seconds.total
        assert step.gap is None or step.gap.mean < 0.01
    assert list(log.steps[-1].norms.values()) == pytest.approx(list(vector.norms.values()))
    assert log.header["sampler"]["model"]["digest"] == trainee.engine.provenance.model["digest"]
    assert "steps" not in log.header["settings"]


def test_the_answers_of_each_step_are_kept(run: tuple[Path, SteeringVector]) -> None:
    folder, _ = run
    first = TrainingLog.read(folder).steps[0]
    with gzip.open(folder / ROLLOUTS / "step-00001.jsonl.gz", "rt") as file:
        answers = [json.loads(line) for line in file]
    assert len(answers) == 6
    assert np.mean([answer["reward"] for answer in answers]) == first.reward
    assert np.mean([answer["tokens"] for answer in answers]) == first.length
    for answer in answers:
        assert answer["finished"]
        assert "\\boxed{" in answer["text"]


def test_the_vector_tells_how_it_was_trained(run: tuple[Path, SteeringVector], tmp_path: Path) -> None:
    _, vector = run
    native.save(vector, tmp_path / "vector.safetensors")
    saved = native.load(tmp_path / "vector.safetensors")
    assert saved == vector
    assert saved.method == "rloo"
    assert saved.layers == (0, 1, 2, 3, 4, 5)
    assert saved.tuning is not None
    assert str(saved.tuning) == "layers 0-5, strength 1, phase all"
    record = " ".join(saved.provenance)
    for words in ("2 steps of 2 problems x 3 answers", "token loss", "task wordproblems-leaps", "answers by", "log "):
        assert words in record


def test_a_killed_training_goes_on_as_if_nothing_had_been(
    run: tuple[Path, SteeringVector], trainee: Trainee, task: Task, graders: Graders, bundled_f16: Path, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("train_until_killed.py")
    process = subprocess.Popen([sys.executable, script, bundled_f16, ABACUS, tmp_path], stderr=subprocess.PIPE)
    while process.poll() is None and lines_of(tmp_path / LOG) < 2:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read() if process.stderr else ""
    assert len(read(tmp_path / LOG)[1]) == 1
    vector = trained(trainee, task, SETTINGS, tmp_path, graders=graders)
    assert steps_of(tmp_path) == steps_of(run[0])
    assert vector.norms == run[1].norms


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_step_that_was_logged_but_not_saved_is_made_again(
    run: tuple[Path, SteeringVector], trainee: Trainee, task: Task, graders: Graders, tmp_path: Path
) -> None:
    shutil.copy(run[0] / LOG, tmp_path)
    shutil.copy(run[0] / SAVED, tmp_path / STATE)
    vector = trained(trainee, task, SETTINGS, tmp_path, graders=graders)
    assert steps_of(tmp_path) == steps_of(run[0])
    assert vector.norms == run[1].norms


def test_a_damaged_state_is_refused(
    run: tuple[Path, SteeringVector], trainee: Trainee, task: Task, tmp_path: Path
) -> None:
    shutil.copy(run[0] / LOG, tmp_path)
    (tmp_path / STATE).write_bytes((run[0] / STATE).read_bytes()[:3000])
    with pytest.raises(EdgeSteerError, match="is no state of this training"):
        trained(trainee, task, SETTINGS, tmp_path)


def test_another_training_does_not_go_into_the_folder(
    run: tuple[Path, SteeringVector], trainee: Trainee, task: Task
) -> None:
    with pytest.raises(EdgeSteerError, match=r"learning_rate is 1.0 there and 0.2 here"):
        trained(trainee, task, replace(SETTINGS, learning_rate=0.2), run[0])


def test_a_training_in_bfloat16_goes_on_in_bfloat16_alone(
    trainee: Trainee, task: Task, graders: Graders, tmp_path: Path
) -> None:
    options = GradientOptions(dtype="bfloat16")

    def train(folder: Path, steps: int) -> SteeringVector:
        rounded = Trainee(trainee.engine, Reference.load(ABACUS))
        return trained(rounded, task, replace(SETTINGS, steps=steps), folder, gradient=options, graders=graders)

    train(tmp_path / "stopped", 1)
    assert train(tmp_path / "stopped", 2).norms == train(tmp_path / "whole", 2).norms
    assert steps_of(tmp_path / "stopped") == steps_of(tmp_path / "whole")
    log = TrainingLog.read(tmp_path / "whole")
    assert all(5e-4 < step.gap.mean < 0.01 for step in log.steps if step.gap)
    with pytest.raises(EdgeSteerError, match=r'policy.backend.dtype is "bfloat16" there and "float32" here'):
        trained(trainee, task, SETTINGS, tmp_path / "whole")


def test_learning_rate_zero_changes_nothing(
    run: tuple[Path, SteeringVector], trainee: Trainee, task: Task, graders: Graders, tmp_path: Path
) -> None:
    still = replace(SETTINGS, steps=2, learning_rate=0.0)
    vector = trained(trainee, task, still, tmp_path, graders=graders)
    assert not any(vector.norms.values())
    assert texts_of(tmp_path, 1) == texts_of(run[0], 1)
    untrained = Sampler(graders, task, SETTINGS).batch(1, trainee.engine, ())
    assert texts_of(tmp_path, 2) == [rollout.text for rollout in untrained.rollouts]


def test_the_vector_is_swapped_in_for_each_step(
    run: tuple[Path, SteeringVector], trainee: Trainee, task: Task, graders: Graders, tmp_path: Path
) -> None:
    """The answers of a step are those of the vector before it; and a training may be given more steps."""
    folder, vector = run
    for name in (LOG, STATE):
        shutil.copy(folder / name, tmp_path)
    trained(trainee, task, replace(SETTINGS, steps=3), tmp_path, graders=graders)
    batch = Sampler(graders, task, SETTINGS).batch(2, trainee.engine, (Steering(vector),))
    assert texts_of(tmp_path, 3) == [rollout.text for rollout in batch.rollouts]
    assert texts_of(tmp_path, 3) != [
        rollout.text for rollout in Sampler(graders, task, SETTINGS).batch(2, trainee.engine, ()).rollouts
    ]


def texts_of(folder: Path, step: int) -> list[str]:
    with gzip.open(folder / ROLLOUTS / f"step-{step:05}.jsonl.gz", "rt") as file:
        return [json.loads(line)["text"] for line in file]


def test_log_probabilities_are_those_of_pytorch_layer_0_included(
    bundled: Reference, bundled_f32: Path, task: Task, graders: Graders
) -> None:
    adapter = TrainedVector(bundled)
    with torch.no_grad():
        adapter.values.add_(torch.randn(adapter.values.shape, generator=torch.Generator().manual_seed(0)))
    exact = EngineOptions(threads=1, kv_type="f32", flash_attention="off")
    with Engine.load(bundled_f32, exact) as engine:
        batch = Sampler(graders, task, SETTINGS).batch(0, engine, (Steering.of(adapter.change()),))
    for rollout, logprobs in zip(batch.rollouts, Policy(bundled, adapter).logprobs(batch.rollouts), strict=True):
        assert rollout.finished
        assert np.abs(logprobs - rollout.logprobs).max() < 1e-4


def test_an_end_token_is_part_of_an_answer(trainee: Trainee, task: Task) -> None:
    request = Request(trainee.engine.chat(task.messages(task.samples[0])), 190, (), Sampling(1.0), logprobs=0)
    [whole] = trainee.engine.generate([request])
    [cut] = trainee.engine.generate([replace(request, max_tokens=5)])
    assert whole.ending is not None
    assert whole.ending.logprob <= 0
    assert trainee.engine.decode([whole.ending.token]) == ""
    assert cut.ending is None
    [again] = trainee.reference.generate([replace(request, sampling=Sampling())])
    assert again.ending is not None
    assert again.ending.token == whole.ending.token


def test_every_problem_comes_once_before_one_comes_twice(task: Task) -> None:
    order = [sample.id for step in range(3) for sample in problems_of(task, SETTINGS, step)]
    assert sorted(order[:3]) == sorted(order[3:]) == sorted(sample.id for sample in task.samples)
    other = [s.id for step in range(9) for s in problems_of(task, replace(SETTINGS, seed=1), step)]
    assert order != other[:6]


def test_memory_is_flat(trainee: Trainee, task: Task, graders: Graders, tmp_path: Path) -> None:
    """After a step there are as many answers, vectors and tensors as after an earlier one."""
    counts: list[Counter[str]] = []

    def count(_step: int, _change: object) -> None:
        gc.collect()
        kinds = Counter(type(thing).__name__ for thing in gc.get_objects())
        watched = ("Rollout", "Batch", "Completion", "SteeringVector", "Steering", "LiveSteering", "Tensor", "Future")
        counts.append(Counter({kind: kinds[kind] for kind in watched}))

    settings = replace(SETTINGS, steps=3, prompts=1)
    trained(trainee, task, settings, tmp_path, graders=graders, on_step=count)
    assert counts[1] == counts[2]


def test_rewards_without_variance_are_refused(trainee: Trainee, task: Task, graders: Graders, tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match=r"no variance: 0% of 6 answers are right and 0 have a box"):
        trained(trainee, task, replace(SETTINGS, max_tokens=20), tmp_path, graders=graders)
    assert not (tmp_path / LOG).exists()


def test_weights_of_another_model_are_refused(
    trainee: Trainee, tiny: Reference, task: Task, graders: Graders, tmp_path: Path
) -> None:
    with pytest.raises(VectorError, match="is of"):
        trained(Trainee(trainee.engine, tiny), task, SETTINGS, tmp_path)
    stranger = Reference.load(ABACUS)
    with torch.no_grad():
        for parameter in stranger.network.parameters():
            parameter += parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(EdgeSteerError, match="not the weights of one model"):
        trained(Trainee(trainee.engine, stranger), task, SETTINGS, tmp_path, graders=graders)


def test_prompts_of_one_token_are_refused(trainee: Trainee, bundled_f16: Path, task: Task, tmp_path: Path) -> None:
    short = replace(task, samples=tuple(replace(sample, question="7") for sample in task.samples))
    plain = Engine.load(bundled_f16, EngineOptions(threads=1, template=PLAIN))
    with plain, pytest.raises(EdgeSteerError, match="no prompt has more than one token"):
        trained(Trainee(plain, trainee.reference), short.with_settings(prompt="{question}"), SETTINGS, tmp_path)
    assert not (tmp_path / LOG).exists()


def test_an_answer_that_is_cut_off_is_worth_nothing(trainee: Trainee, task: Task, graders: Graders) -> None:
    """Nor is one without a box, whatever it says otherwise."""
    batch = Sampler(graders, task, replace(SETTINGS, max_tokens=40)).batch(0, trainee.engine, ())
    assert not any(rollout.finished or rollout.boxed or rollout.reward for rollout in batch.rollouts)
    assert not graders.submit("The answer is 12.", "12", grading="boxed").result().correct
    assert graders.submit("It is \\boxed{11}, no, \\boxed{12}.", "12", grading="boxed").result().correct
