"""`edge-steer train`: vectors, adapters and weights, trained on rewards or on solutions; what a log tells.

Takes click's values, calls the library, prints the figures.
"""

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.core.errors import need
from edge_steer.terminal.group import resumable
from edge_steer.terminal.options import (
    FILE,
    FOLDER,
    LAYERS,
    MODEL,
    TASK,
    engine_options,
    evaluation_option,
    quant_option,
)
from edge_steer.terminal.progress import NOTES, progress_bar
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_steer.core.backend import EngineOptions
    from edge_steer.tasks.protocols import Protocol
    from edge_steer.training.policy import Dtype, GradientOptions
    from edge_steer.training.records import StepRecord
    from edge_steer.training.settings import Kind, Preset

    Command = Callable[..., object]

SHOWN = 10  # rows of the table of `train show`


def adapter_options(default: "Kind") -> "Callable[[Command], Command]":
    """What is trained."""

    def decorate(command: "Command") -> "Command":
        rank = click.option("--rank", type=click.IntRange(1), default=4, show_default=True, help="Of the LoRA.")
        kind = click.option(
            "--adapter", "kind", type=click.Choice(["vector", "lora", "full"]), default=default, show_default=True,
            help="What is trained: a vector a block, a LoRA on down_proj, or all weights.",
        )  # fmt: skip
        return kind(rank(command))

    return decorate


def gradient_options(command: "Command") -> "Command":
    """How PyTorch computes a gradient; the command takes it as `gradient: GradientOptions`."""

    @functools.wraps(command)
    def run(batch_tokens: int, checkpointing: bool, device: str | None, dtype: "Dtype", **values: Any) -> object:
        from edge_steer.training.policy import GradientOptions

        need("train")
        return command(gradient=GradientOptions(batch_tokens, checkpointing, device, dtype), **values)

    options = (
        click.option(
            "--batch-tokens", type=click.IntRange(1), default=2048, show_default=True,
            help="Positions of a gradient that are computed at once.",
        ),
        click.option("--checkpointing", is_flag=True, help="Less memory for the gradient, a third more time."),
        click.option("--device", help="Where PyTorch computes, as cuda.  [default: cpu]"),
        click.option(
            "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
            help="Of the weights and matrix products in PyTorch; not of what is trained.",
        ),
    )  # fmt: skip
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), run)


@click.group("train")
def train_group() -> None:
    """Train vectors by reinforcement learning, one a block; or LoRA or all weights; or on teachers' solutions."""


@train_group.command()
@click.argument("model", type=MODEL)
@click.option("--task", "task_name", type=TASK, required=True,
              help="A task's name, NAME=FILE or a task.toml; a right answer in its last box is worth 1.")  # fmt: skip
@click.option("-o", "--out", "folder", type=FOLDER, required=True, help="Folder of the log, the state and the vector.")
@click.option("--gguf", type=FILE, help="The file that answers in llama.cpp.  [default: MODEL itself]")
@quant_option
@adapter_options("vector")
@click.option("--preset", type=click.Choice(["laptop", "paper"]), default="laptop", show_default=True,
              help="Whose numbers hold where no option says otherwise; the paper's are for 16 GPUs.")  # fmt: skip
@click.option("--split", help="Split of the task to train on.  [default: train]")
@click.option("--protocol", type=click.Choice(["densesteer", "densesteer-code", "bias-only"]), default="bias-only",
              show_default=True, help="The paper whose prompts are used.")  # fmt: skip
@click.option("--problems", type=click.IntRange(1), help="Only the first problems of the split.")
@evaluation_option
@click.option("--layers", type=LAYERS, metavar="LAYERS", help="Layers to train.  [default: all blocks]")
@click.option("--steps", type=click.IntRange(1), help="Steps of the optimiser.  [laptop: 100, paper: 314]")
@click.option("--prompts", type=click.IntRange(1), help="Problems of a step.  [laptop: 8, paper: 128]")
@click.option("--generations", type=click.IntRange(2), help="Answers to a problem.  [laptop: 8, paper: 16 or 64]")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Of an answer.  [laptop: 512, paper: 8192]")
@click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(0),
    help="Learning rate.  [vector 1e-3, lora 1e-4, full 1e-6; paper: by model]",
)
@click.option("--warmup", type=click.IntRange(0), help="Steps until the learning rate is reached.  [default: 3%]")
@click.option("--loss", type=click.Choice(["token", "sequence"]),
              help="Mean over all tokens of a batch, or over its answers.  [default: token]")  # fmt: skip
@click.option("--baseline", type=click.Choice(["leave-one-out", "mean"]),
              help="Mean reward of a problem's other answers, or of all.  [default: leave-one-out]")  # fmt: skip
@click.option("--kl", type=click.FloatRange(0), help="Weight of the divergence from the model.  [default: 0]")
@click.option("--clip", type=click.FloatRange(0, min_open=True), help="Most norm of a gradient.  [default: 2]")
@click.option("--importance-cap", type=click.FloatRange(0),
              help="Most that a token weighs for what PyTorch and llama.cpp differ; 0 is no weights.  [default: 2]",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Of the order of problems and of all answers.  [default: 0]")
@click.option("--shuffle-rewards", is_flag=True, default=None,
              help="Deal rewards out at random: a control, which must teach nothing.")  # fmt: skip
@gradient_options
@click.option("--keep-every", type=click.IntRange(1), default=25, show_default=True,
              help="Keep what is trained after so many steps.")  # fmt: skip
@engine_options
@resumable
def rloo(
    model: str,
    task_name: str,
    folder: Path,
    gguf: Path | None,
    quant: str | None,
    kind: "Kind",
    rank: int,
    preset: "Preset",
    split: str | None,
    protocol: "Protocol",
    problems: int | None,
    evaluations: tuple[str, ...],
    layers: tuple[int, ...] | None,
    gradient: "GradientOptions",
    keep_every: int,
    engine: "EngineOptions",
    **chosen: Any,
) -> None:
    """Train a vector for each block of MODEL by RLOO (Bias-Only Adaptation), with a right answer as the reward.

    llama.cpp answers with the vector as it stands, on any GGUF; PyTorch computes the gradient from MODEL's weights: a
    folder or hub id, or a GGUF, dequantised. A stopped run goes on; with more --steps a finished one does too. Or a
    LoRA or all weights in place of the vector.
    """
    import edge_steer
    from edge_steer.tasks.calibration import evaluation_tasks, leave_out_evaluation_problems
    from edge_steer.training.rollouts import training_task
    from edge_steer.training.settings import Adapter, preset_settings

    task = training_task(task_name, protocol=protocol, split=split, limit=problems)
    task = leave_out_evaluation_problems(task, evaluation_tasks(task, evaluations, NOTES), NOTES)
    settings = replace(
        preset_settings(preset, model, kind), **{name: value for name, value in chosen.items() if value is not None}
    )
    with progress_bar() as progress:
        path = edge_steer.train_adapter(
            model, task, folder, Adapter(kind, layers, rank), settings, gguf=gguf, quant=quant, options=engine,
            gradient=gradient, keep_every=keep_every, progress=progress,
        )  # fmt: skip
    _print_log(folder)
    click.echo(f"wrote {path}")
    adapted = {
        "vector": f"{gguf or model} --vector {path}",
        "lora": f"{gguf or model} --lora {path}",
        "full": str(path),
    }
    click.echo(f"next: edge-steer eval {adapted[kind]} --task {task_name}")


@train_group.command()
@click.argument("model", type=MODEL)
@click.option("--data", required=True, multiple=True, metavar="TEACHER=FILE",
              help="Solutions of a teacher: lines of JSON with question and solution, or a file of `pairs generate`; "
              "repeatable. Wrong ones are left out.")  # fmt: skip
@click.option("--mix", "shares", metavar="TEACHER=SHARE,...", help="How much of each, as long=0.2,short=0.8.  "
              "[default: all of every teacher]")  # fmt: skip
@click.option("-o", "--out", "folder", type=FOLDER, required=True, help="Folder of the log, the state and the result.")
@adapter_options("full")
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Solutions of a step.")
@click.option("--lr", "learning_rate", type=click.FloatRange(0, min_open=True), default=1e-5, show_default=True,
              help="Learning rate at the start; it falls to 0.")  # fmt: skip
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=4096, show_default=True,
              help="Of a problem with its solution; longer ones are left out.")  # fmt: skip
@click.option("--held-out", type=click.IntRange(1), default=20, show_default=True,
              help="Solutions of each teacher to measure likelihood on, not trained on.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True)
@gradient_options
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@resumable
def sft(
    model: str,
    data: tuple[str, ...],
    shares: str | None,
    folder: Path,
    kind: "Kind",
    rank: int,
    gradient: "GradientOptions",
    threads: int | None,
    **chosen: Any,
) -> None:
    """Train MODEL on teachers' solutions, mixed by shares: the distillation that DenseSteer is compared with.

    Prints how likely MODEL holds solutions of each teacher before and after, on those that were held out.
    """
    import edge_steer
    from edge_steer.core.backend import EngineOptions
    from edge_steer.tasks.grading import Graders
    from edge_steer.training.settings import Adapter, SftSettings
    from edge_steer.training.sft import mix, read_demonstrations, read_learnability

    files = dict(_named(text, "--data TEACHER=FILE") for text in data)
    with Graders() as graders:
        by_teacher = {teacher: read_demonstrations(teacher, file, graders) for teacher, file in files.items()}
    if shares:
        parts = dict(_named(text, "--mix TEACHER=SHARE") for text in shares.split(","))
        weights = {teacher: _share(share) for teacher, share in parts.items()}
    else:
        weights = {teacher: float(len(solutions)) for teacher, solutions in by_teacher.items()}
    settings = SftSettings(**chosen)
    with progress_bar() as progress:
        path = edge_steer.train_sft(
            model, mix(by_teacher, weights, settings.seed), folder, settings, adapter=Adapter(kind, rank=rank),
            options=EngineOptions(threads=threads), gradient=gradient, progress=progress,
        )  # fmt: skip
    before, after = read_learnability(folder)
    rows = ([teacher, f"{before[teacher]:.3f}", f"{after[teacher]:.3f}"] for teacher in before)
    print_table(["teacher", "NLL before", "after"], rows, "held-out solutions, nats a token")
    click.echo(f"wrote {path}")


@train_group.command()
@click.argument("folder", type=FOLDER)
@click.option("--plot/--no-plot", default=True, show_default=True, help="Write training.png into FOLDER.")
def show(folder: Path, plot: bool) -> None:
    """What the log of a training in FOLDER tells, which may be going on: a table and a picture."""
    from edge_steer.training.plots import plot_training
    from edge_steer.training.records import TrainingLog

    _print_log(folder)
    if plot:
        click.echo(f"wrote {plot_training(TrainingLog.read(folder), folder / 'training.png')}")


def _named(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.UsageError(f"{text!r} is not of the form {form}")
    return name.strip(), value


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is no share, as 0.2") from None


def _print_log(folder: Path) -> None:
    from edge_steer.training.records import TrainingLog

    log = TrainingLog.read(folder)
    width = -(-len(log.steps) // SHOWN)
    parts = [log.steps[first : first + width] for first in range(0, len(log.steps), width or 1)]
    columns = ["steps", "reward", "boxed", "finished", "tokens", "surprise", "alike", "gap", "largest norm", "s a step"]
    print_table(columns, map(_row, parts), log.title)
    click.echo(
        "alike: share of problems whose answers were all rewarded alike. surprise: -log p of a token, nats.\n"
        "gap: |log p in PyTorch - in llama.cpp| of a token."
    )


def _row(steps: "Sequence[StepRecord]") -> list[str]:
    """The mean of some steps, and the norm after the last."""
    from statistics import fmean

    first, last = steps[0].step, steps[-1].step
    gaps = [step.gap.mean for step in steps if step.gap]
    return [
        f"{first}-{last}" if last > first else str(first),
        f"{fmean(step.reward for step in steps):.1%}",
        f"{fmean(step.boxed for step in steps):.0%}",
        f"{fmean(step.finished for step in steps):.0%}",
        f"{fmean(step.length for step in steps):.0f}",
        f"{fmean(step.surprise for step in steps):.3f}",
        f"{fmean(step.alike for step in steps):.0%}",
        f"{fmean(gaps):.2g}" if gaps else "",
        f"{max(steps[-1].norms.values()):.3g}",
        f"{fmean(step.seconds.total for step in steps):.1f}",
    ]
