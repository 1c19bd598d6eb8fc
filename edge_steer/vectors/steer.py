"""A vector file put to use: what `--vector FILE[:STRENGTH]` and every plugin's `vector=` mean.

Takes the text a user wrote, gives a Steering. The file's tuning holds where nothing else is said.
"""

from collections.abc import Iterable
from pathlib import Path

from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Phase, spans
from edge_steer.vectors.read import OURS, read


def steering_of_file(
    source: str | Path,
    strength: float | None = None,
    layers: int | Iterable[int] | None = None,
    phase: Phase | None = None,
    *,
    progress: Progress = SILENT,
) -> Steering:
    """The vector of a file or export folder as its tuning says; what is given wins over it.

    source: FILE, or FILE:STRENGTH, whose strength wins over `strength`. Without a tuning: strength 1, all layers,
    phase "all". progress: hears in one line what is applied. Errors: VectorError, as of `read.read` and Steering.
    """
    path, own_strength = split_strength(source)
    file = read(path)
    wanted = (layers,) if isinstance(layers, int) else layers
    steering = Steering.of(file.vector, strength if own_strength is None else own_strength, wanted, phase)
    origin = "" if file.origin == OURS else f" from {file.origin}, layers counted by {file.convention}"
    progress.note(
        f"steering by {path}{origin}: layers {spans(steering.layers or ())}, strength {steering.strength:g}, "
        f"phase {steering.phase}, digest {file.vector.digest[:12]}"
    )
    return steering


def split_strength(source: str | Path) -> tuple[Path, float | None]:
    """The path and the strength of FILE:STRENGTH; None where the text ends in no number."""
    name, _, number = str(source).rpartition(":")
    try:
        return (Path(name), float(number)) if name else (Path(source), None)
    except ValueError:
        return Path(source), None
