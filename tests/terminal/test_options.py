"""What the option decorators hand to a command."""

import click
import pytest
from click.testing import CliRunner
from paths import DENSE

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import RequestError
from edge_steer.core.sampling import GREEDY, Sampling
from edge_steer.core.steering import Steering
from edge_steer.core.vector import PHASES
from edge_steer.tasks.load import load_task
from edge_steer.terminal.options import (
    SamplingChanges,
    SteeringChoice,
    TaskChoice,
    engine_options,
    sampling_options,
    steering_from,
    steering_options,
    task_options,
)
from edge_steer.terminal.parameters import PHASE
from edge_steer.vectors.read import load


@click.command()
@engine_options
@steering_options
@task_options
def measure(engine: EngineOptions, steering_choice: SteeringChoice, task_choice: TaskChoice) -> None:
    click.echo(f"{engine}\n{steering_choice}\n{task_choice}")


@click.command()
@sampling_options
def answer(sampling: SamplingChanges) -> None:
    click.echo(str(sampling))


def test_nothing_typed_changes_nothing() -> None:
    lines = CliRunner().invoke(measure, []).output.splitlines()
    assert lines == [str(EngineOptions()), str(SteeringChoice()), str(TaskChoice("densesteer"))]
    assert CliRunner().invoke(answer, []).output == f"{SamplingChanges()}\n"
    assert SamplingChanges().over(GREEDY) == GREEDY
    assert TaskChoice("bias-only").load("wordproblems", 3) == load_task("wordproblems", protocol="bias-only", limit=3)


def test_what_is_typed_arrives() -> None:
    words = ["--vector", "a.gguf:2", "--vector", "b", "--layers", "1-3", "--strength", "-4", "--phase", "generated",
             "--threads", "2", "--system", "", "--temperature", "0.5", "-n", "7"]  # fmt: skip
    lines = CliRunner().invoke(measure, words).output.splitlines()
    assert lines[0] == str(EngineOptions(threads=2))
    assert lines[1] == str(SteeringChoice(("a.gguf:2", "b"), (1, 2, 3), -4.0, "generated"))
    choice = TaskChoice("densesteer", system="", max_tokens=7, sampling=SamplingChanges(temperature=0.5))
    assert lines[2] == str(choice)


def test_every_phase_can_be_typed() -> None:
    assert tuple(PHASE.choices) == PHASES


def test_sampling_changes_stand_over_a_protocols_own() -> None:
    base = Sampling(temperature=1.0, top_p=0.9, seed=5)
    assert SamplingChanges(temperature=0.0, top_k=3).over(base) == Sampling(temperature=0.0, top_k=3, top_p=0.9, seed=5)
    with pytest.raises(RequestError, match="finite"):
        SamplingChanges(temperature=float("inf")).over(base)


def test_a_task_is_asked_as_typed() -> None:
    typed = TaskChoice(
        "densesteer", "dev", 4, "Q: {question}", "Be brief.", 9, sampling=SamplingChanges(temperature=0.7, seed=1)
    )
    task = typed.load("wordproblems", 2)
    settings = task.settings
    assert (len(task.samples), task.samples[0].id) == (2, "dev-0-0")
    assert (settings.samples, settings.prompt, settings.system, settings.max_tokens) == (
        4,
        "Q: {question}",
        "Be brief.",
        9,
    )
    assert settings.sampling == Sampling(temperature=0.7, seed=1)
    assert TaskChoice("densesteer", system="").load("wordproblems", 1).settings.system is None


def test_steering_from_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    vector = load(DENSE)
    assert steering_from(SteeringChoice()) == ()
    weak = f"{DENSE / 'vector.gguf'}:0.1"
    assert steering_from(SteeringChoice((str(DENSE), weak), phase="generated")) == (
        Steering(vector, 0.325, (5,), "generated"),
        Steering(vector, 0.1, (5,), "generated"),
    )
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"steering by {DENSE}", f"steering by {DENSE / 'vector.gguf'}"]
    for choice in (SteeringChoice(layers=(5,)), SteeringChoice(strength=1.0), SteeringChoice(phase="all")):
        with pytest.raises(click.UsageError, match="need a --vector"):
            steering_from(choice)


def test_values_of_the_environment_are_read() -> None:
    result = CliRunner().invoke(
        measure, [], auto_envvar_prefix="EDGE", env={"EDGE_LAYERS": "2,4", "EDGE_THREADS": "3", "EDGE_PHASE": "all"}
    )
    assert str(SteeringChoice(layers=(2, 4), phase="all")) in result.output
    assert str(EngineOptions(threads=3)) in result.output
