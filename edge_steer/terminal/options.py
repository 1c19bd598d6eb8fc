"""What the commands share: the group that prints errors in one line, option decorators, what they parse.

Takes click's strings, gives the library's values. Heavy packages are imported inside the functions.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from edge_steer.core.steering import Steering

ENGINE_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--gpu-layers", {"default": -1, "show_default": True, "help": "Layers to offload where possible; -1 is all."}),
    ("--flash-attention", {"type": click.Choice(["auto", "on", "off"]), "default": "auto", "show_default": True}),
    ("--kv-type", {"type": click.Choice(["f32", "f16", "q8_0"]), "default": "f16", "show_default": True}),
    ("--parallel", {"type": click.IntRange(1, 256), "default": 16, "show_default": True, "help": "Sequences at once."}),
    ("--context", {"type": click.IntRange(1), "help": "Most positions of a sequence.  [default: the model's]"}),
    ("--threads", {"type": click.IntRange(1, 512), "help": "[default: the cores this process may use]"}),
)
F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def engine_options(command: F) -> F:
    """How the model runs in llama.cpp; the command takes it as `engine`, an EngineOptions."""
    names = [name.removeprefix("--").replace("-", "_") for name, *_ in ENGINE_OPTIONS]

    @functools.wraps(command)
    def with_engine(*args: Any, **values: Any) -> Any:
        from edge_steer.core.backend import EngineOptions

        return command(*args, engine=EngineOptions(**{name: values.pop(name) for name in names}), **values)

    decorated: Any = with_engine
    for name, settings in ENGINE_OPTIONS:
        decorated = click.option(name, **settings)(decorated)
    return cast("F", decorated)


def steering_options(command: F) -> F:
    """Which vectors steer, where, how strongly and when."""
    for option in (
        click.option("--phase", type=click.Choice(["all", "generated"]), default="all", show_default=True,
                     help="Steer every position, or from the last prompt token on."),
        click.option("--strength", type=float, default=1.0, show_default=True,
                     help="Strength of the vectors given without one."),
        click.option("--layers", help="Layers to steer, as 3 or 1-5 or 1,2,7-9.  [default: all of the vector's]"),
        click.option("--vector", "vectors", multiple=True, metavar="FILE[:STRENGTH]",
                     help="A vector file (.gguf, .safetensors, .pt, .npz); several add up."),
    ):  # fmt: skip
        command = option(command)
    return command


def steering_from(vectors: tuple[str, ...], layers: str | None, strength: float, phase: Any) -> "tuple[Steering, ...]":
    """What `steering_options` parsed; where a file is another tool's, stderr says whose.

    Errors: UsageError for layers without a vector, VectorError.
    """
    from edge_steer.core.steering import Steering
    from edge_steer.core.vector import parse_layers
    from edge_steer.vectors.read import OURS, read

    if layers and not vectors:
        raise click.UsageError("--layers needs a --vector")
    steering = []
    for given in vectors:
        name, _, factor = given.rpartition(":")
        try:
            path, own = (Path(name), float(factor)) if name else (Path(given), strength)
        except ValueError:
            path, own = Path(given), strength
        found = read(path)
        if found.origin != OURS:
            click.echo(f"{path}: from {found.origin}; layers counted by {found.convention}", err=True)
        steering.append(Steering(found.vector, own, parse_layers(layers) if layers else None, phase))
    return tuple(steering)
