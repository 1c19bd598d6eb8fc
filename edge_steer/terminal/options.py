"""Option decorators that the commands share: one name for one thing in every command.

| option | in every command |
|---|---|
| `--problems N` | how many problems of a task; sweep draws two sets: `--dev-problems N`, `--test-problems N` |
| `--pairs N` | how many pairs |
| `--texts N` | how many texts; the file they are read from is `--text-file FILE` |
| `--solutions N` | how many solutions |
| `-o, --out FOLDER` | the folder of the results |
| `-o, --output FILE` | the one file that is written |
| `--vector FILE[:STRENGTH]` | a vector file of any kind, or an export folder; repeatable where vectors add up |
| `--layers`, `--strength`, `--phase` | where, how strongly, when; not given: as the file says, else all, 1, all |
| `--task NAME` | a task's name, NAME=FILE or a task.toml; `--split`, `--protocol`, `--samples` say how it is asked |
| `--prompt`, `--system`, `--stop`, `--grade`, `-n, --max-tokens`, `--temperature`, ... | in place of the protocol's |
| `--subset N`, `--subset-seed S` | so many problems of a task, drawn at random |
| `--quant`, `--revision`, `--backend` | which form of MODEL runs, and in which runtime |
| `--lora ADAPTER[:SCALE]` | a low-rank adapter MODEL runs with |
| `--date` | what a chat template that writes the date takes for today |
| `--template` | how a question becomes a prompt: `chat`, `none` or a Jinja file |
| `--json` | one JSON document on standard output, or one a line |

A decorator gives the command one frozen value: `engine`, `steering_choice`, `sampling` or `task_choice`. Heavy packages
are imported inside the functions.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edge_steer.terminal.parameters import FILE, FOLDER, LAYERS, MODEL, PATH, PHASE, TASK, TEMPLATE, VECTOR
from edge_steer.terminal.progress import NOTES

if TYPE_CHECKING:
    from edge_steer.core.backend import Lora
    from edge_steer.core.sampling import Sampling
    from edge_steer.core.steering import Steering
    from edge_steer.core.vector import Phase
    from edge_steer.tasks.answers import Grading
    from edge_steer.tasks.protocols import Protocol
    from edge_steer.tasks.task import Task

__all__ = ["FILE", "FOLDER", "LAYERS", "MODEL", "PATH", "TASK", "VECTOR"]

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quant_option = click.option("--quant", help="Quantise MODEL to this type first (cached).")


def named_vectors_option(help_text: str) -> Callable[[F], F]:
    """Gives the command an argument `vectors`: texts that `vectors.named.NamedFile.parse` reads."""
    return click.option(
        "--vector", "vectors", multiple=True, type=VECTOR, metavar="[NAME=]FILE[:STRENGTH]", help=help_text
    )


revision_option = click.option("--revision", help="Commit of a hub model.")
runtime_option = click.option(
    "--backend", "runtime", type=click.Choice(["llama", "torch"]), default="llama", show_default=True,
    help="Run MODEL in llama.cpp or in PyTorch.",
)  # fmt: skip
nll_option = click.option(
    "--nll/--no-nll", default=True, show_default=True, help="Score each text under the unsteered model."
)
template_option = click.option(
    "--template", type=TEMPLATE, default="chat", show_default=True, metavar="chat|none|FILE",
    help="Ask in the model's chat template, in plain text, or in a Jinja template of your own.",
)  # fmt: skip
grading_option = click.option(
    "--grading-seconds", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
    help="Time limit for grading an answer.",
)  # fmt: skip
evaluation_option = click.option(
    "--evaluation", "evaluations", type=TASK, multiple=True,
    help="Leave out the problems of this task.  [default: the task's own test split]",
)  # fmt: skip

_ENGINE: dict[str, Any] = {
    "threads": click.option("--threads", type=click.IntRange(1, 512), help="[default: the cores this process may use]"),
    "context": click.option(
        "--context", type=click.IntRange(1), help="Most positions of a sequence.  [default: the model's]"
    ),
    "parallel": click.option(
        "--parallel", type=click.IntRange(1, 256), default=16, show_default=True, help="Sequences at once."
    ),
    "kv_type": click.option(
        "--kv-type", type=click.Choice(["f32", "f16", "q8_0"]), default="f16", show_default=True,
        help="Number type of the KV cache.",
    ),
    "flash_attention": click.option(
        "--flash-attention", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True
    ),
    "gpu_layers": click.option(
        "--gpu-layers", type=int, default=-1, show_default=True, help="Layers to offload where possible; -1 is all."
    ),
    "template": template_option,
    "lora": click.option(
        "--lora", type=VECTOR, metavar="ADAPTER[:SCALE]",
        help="Run MODEL with a low-rank adapter: a folder of PEFT, or a LoRA of llama.cpp.",
    ),
    "date": click.option(
        "--date", metavar="YYYY-MM-DD", help="What a chat template takes for today.  [default: today]"
    ),
}  # fmt: skip
_STEERING: dict[str, Any] = {
    "vectors": click.option(
        "--vector", "vectors", multiple=True, type=VECTOR, metavar="FILE[:STRENGTH]",
        help="A vector file (.gguf, .safetensors, .pt, .npz) or a folder with a recipe.toml; several add up.",
    ),
    "layers": click.option(
        "--layers", type=LAYERS, metavar="LAYERS",
        help="Layers to steer, as 3 or 1-5 or 1,2,7-9.  [default: the file's, else all of the vector's]",
    ),
    "strength": click.option(
        "--strength", type=float, help="Strength of the vectors given without one.  [default: the file's, else 1]"
    ),
    "phase": click.option(
        "--phase", type=PHASE,
        help="Steer every position, from the last prompt token on, or of these only the tokens with a blank line.  "
        "[default: the file's, else all]",
    ),
}  # fmt: skip
_SAMPLING: dict[str, Any] = {
    "temperature": click.option("--temperature", type=click.FloatRange(0), help="0 is greedy."),
    "top_k": click.option("--top-k", type=click.IntRange(0), help="0 is off."),
    "top_p": click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="1 is off."),
    "min_p": click.option("--min-p", type=click.FloatRange(0, 1), help="0 is off."),
    "seed": click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of the draws at a temperature above 0."),
    "repeat_penalty": click.option("--repeat-penalty", type=click.FloatRange(0, min_open=True), help="1 is off."),
    "frequency_penalty": click.option("--frequency-penalty", type=float, help="0 is off."),
    "presence_penalty": click.option("--presence-penalty", type=float, help="0 is off."),
    "repeat_last_n": click.option("--repeat-last-n", type=click.IntRange(0), help="Tokens that penalties look at."),
}
_TASK: dict[str, Any] = {
    "protocol": click.option(
        "--protocol", type=click.Choice(["densesteer", "densesteer-code", "bias-only"]), default="densesteer",
        show_default=True,
        help="The paper whose prompts, lengths and sampling are used where no option says otherwise.",
    ),
    "split": click.option("--split", help="Split of a task that has several."),
    "samples": click.option("--samples", type=click.IntRange(1), help="Completions of each problem."),
    "prompt": click.option("--prompt", help="Prompt template with {question}."),
    "system": click.option("--system", help="System message; '' is none."),
    "max_tokens": click.option("-n", "--max-tokens", type=click.IntRange(1), help="Most tokens of a completion."),
    "stop": click.option("--stop", multiple=True, metavar="TEXT", help="A string that ends a completion; repeatable."),
    "grading": click.option(
        "--grade", "grading", type=click.Choice(["boxed", "lenient"]),
        help="What counts as the answer: the last box alone, or an answer without a box too.",
    ),
    "subset": click.option("--subset", type=click.IntRange(1), help="Only so many problems, drawn at random."),
    "subset_seed": click.option(
        "--subset-seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the subset."
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SteeringChoice:
    """What a user typed about steering. vectors: FILE[:STRENGTH] each; None is what the file says."""

    vectors: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    strength: float | None = None
    phase: "Phase | None" = None


@dataclass(frozen=True)
class SamplingChanges:
    """Sampling settings that a user typed; None is left as it is. The fields are those of `Sampling`."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_last_n: int | None = None

    def over(self, sampling: "Sampling") -> "Sampling":
        """`sampling` with these settings in place of its own. Errors: RequestError."""
        return replace(sampling, **_typed(self))


@dataclass(frozen=True)
class TaskChoice:
    """How a user wants a task asked; None is what its protocol says."""

    protocol: "Protocol"
    split: str | None = None
    samples: int | None = None
    prompt: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    grading: "Grading | None" = None
    subset: int | None = None
    subset_seed: int = 0
    sampling: SamplingChanges = SamplingChanges()

    def load(self, name: str, problems: int | None = None, file: Path | None = None) -> "Task":
        """The task, asked so. problems: the first so many. Errors: EdgeSteerError, as `tasks.load.load_task`."""
        from edge_steer.tasks.load import load_task

        task = load_task(name, protocol=self.protocol, file=file, split=self.split, limit=problems)
        if self.subset is not None:
            task = task.subset(self.subset, self.subset_seed)
        return task.with_settings(
            prompt=self.prompt,
            system=self.system,
            max_tokens=self.max_tokens,
            samples=self.samples,
            sampling=self.sampling.over(task.settings.sampling),
            stop=self.stop or None,
            grading=self.grading,
        )


def engine_options(command: F) -> F:
    """How the model runs in llama.cpp; the command takes it as `engine: EngineOptions`."""
    return _with_value(command, "engine", _ENGINE, _engine)


def server_engine_options(command: F) -> F:
    """`engine_options` of a command whose requests choose among several adapters."""
    several = click.option(
        "--lora", "loras", multiple=True, type=VECTOR, metavar="ADAPTER[:SCALE]",
        help="A low-rank adapter, a folder of PEFT or a LoRA of llama.cpp; requests that name none get all, at SCALE.",
    )  # fmt: skip
    return _with_value(command, "engine", _engine_without("lora") | {"loras": several}, _engine)


def conversation_engine_options(command: F) -> F:
    """`engine_options` of a command that has one conversation, and so asks for no number of sequences."""
    return _with_value(command, "engine", _engine_without("parallel"), _engine)


def steering_options(command: F) -> F:
    """Which vectors steer, where, how strongly and when; the command takes it as `steering_choice: SteeringChoice`."""
    return _with_value(command, "steering_choice", _STEERING, lambda values: SteeringChoice(**values))


def sampling_options(command: F) -> F:
    """How tokens are chosen; the command takes it as `sampling: SamplingChanges`."""
    return _with_value(command, "sampling", _SAMPLING, lambda values: SamplingChanges(**values))


def asking_options(command: F) -> F:
    """How a task is asked, without sampling and subsets; the command takes it as `task_choice: TaskChoice`."""
    names = ("protocol", "split", "prompt", "system", "max_tokens", "stop", "grading")
    asking = {name: _TASK[name] for name in names}
    return _with_value(command, "task_choice", asking, lambda values: TaskChoice(**values))


def task_options(command: F) -> F:
    """How a task is asked, sampling included; the command takes it as `task_choice: TaskChoice`."""

    def build(values: Mapping[str, Any]) -> object:
        sampling = SamplingChanges(**{name: values[name] for name in _SAMPLING})
        return TaskChoice(**{name: values[name] for name in _TASK}, sampling=sampling)

    return _with_value(command, "task_choice", {**_TASK, **_SAMPLING}, build)


def steering_from(choice: SteeringChoice) -> "tuple[Steering, ...]":
    """The steering that was chosen; stderr says in one line for each vector what it applies.

    Errors: UsageError for layers, strength or phase without a vector; VectorError.
    """
    from edge_steer.vectors.steer import steering_of_file

    if not choice.vectors and choice != SteeringChoice():
        raise click.UsageError("--layers, --strength and --phase need a --vector")
    return tuple(
        steering_of_file(source, choice.strength, choice.layers, choice.phase, progress=NOTES)
        for source in choice.vectors
    )


def _engine_without(name: str) -> dict[str, Any]:
    return {other: option for other, option in _ENGINE.items() if other != name}


def _engine(values: Mapping[str, Any]) -> object:
    from edge_steer.core.backend import EngineOptions

    loras = tuple(_lora(source) for source in values.get("loras", ()))
    source = values.get("lora")
    lora = None if source is None else _lora(source)
    return EngineOptions(**{**values, "lora": lora, "loras": loras})


def _lora(source: str) -> "Lora":
    """The adapter of ADAPTER[:SCALE]."""
    from edge_steer.adapters.choice import choose_lora
    from edge_steer.vectors.steer import split_strength

    path, scale = split_strength(source)
    return choose_lora(path, 1.0 if scale is None else scale)


def _with_value(
    command: F, parameter: str, options: Mapping[str, Any], build: Callable[[Mapping[str, Any]], object]
) -> F:
    """`command` with these options, whose values it takes as one parameter."""

    @functools.wraps(command)
    def with_value(*args: Any, **values: Any) -> Any:
        value = build({name: values.pop(name) for name in options})
        return command(*args, **{parameter: value}, **values)

    decorated: Any = with_value
    for option in reversed(list(options.values())):
        decorated = option(decorated)
    return cast("F", decorated)


def _typed(changes: SamplingChanges) -> dict[str, Any]:
    """The fields that were typed."""
    values = {field.name: getattr(changes, field.name) for field in fields(changes)}
    return {name: value for name, value in values.items() if value is not None}
