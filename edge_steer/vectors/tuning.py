"""A vector's tuning in files: as three fields, and through changes of layers and strength.

Takes and gives `core.vector` values. Every file format keeps the same fields: layers as "10-14", strength, phase.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import PHASES, SteeringVector, Tuning, check_strength, parse_layers, spans

FIELDS = ("layers", "strength", "phase")
MAX_TEXT = 8192  # characters of the layers' text


def fields_of(tuning: Tuning) -> dict[str, str | float]:
    """The fields of a file: layers, strength and phase."""
    return {"layers": spans(tuning.layers), "strength": float(tuning.strength), "phase": tuning.phase}


def with_fields(vector: SteeringVector, fields: Mapping[str, object], path: Path) -> SteeringVector:
    """`vector` with the tuning of a file's fields; as it is if there are none.

    Errors: VectorError for a field that is missing, of another type or unknown, and for a layer the vector has not.
    """
    if not fields:
        return vector
    if {*fields} != {*FIELDS}:
        raise VectorError(f"{path}: its tuning needs {', '.join(FIELDS)}, and nothing else")
    strength = fields["strength"]
    if isinstance(strength, bool) or not isinstance(strength, int | float) or abs(strength) > 1e300:
        raise VectorError(f"{path}: its tuned strength is {str(strength)[:40]!r}; it must be a finite number")
    phase = next((phase for phase in PHASES if phase == fields["phase"]), None)
    if phase is None:
        raise VectorError(f"{path}: its tuned phase is {str(fields['phase'])[:40]!r}; allowed are {', '.join(PHASES)}")
    try:
        return vector.tuned(_layers(fields["layers"]), float(strength), phase)
    except VectorError as error:
        raise VectorError(f"{path}: its tuning does not fit: {error}") from None


def change(vector: SteeringVector, layers: Iterable[int] | None = None, strength: float = 1.0) -> SteeringVector:
    """The vector with only these layers, its values multiplied by `strength`. None is all layers.

    Its tuning goes along: fewer layers, and a strength divided by `strength`, so that it steers as before.
    Errors: VectorError for a layer it has not, no tuned layer left, a strength of 0 or not finite.
    """
    check_strength(strength)
    if strength == 0:
        raise VectorError("strength is 0; a vector that does nothing is not written")
    chosen = vector.layers if layers is None else vector.check_layers(layers)
    tuning = vector.tuning
    changed = vector if chosen == vector.layers else vector.at(chosen)
    if strength != 1:
        changed = changed * strength
    if tuning is None:
        return changed
    if not (tuned := set(tuning.layers) & set(chosen)):
        raise VectorError(
            f"the vector is tuned for layers {spans(tuning.layers)}, and layers {spans(chosen)} would be left; "
            "keep a tuned layer, or tune it anew"
        )
    return replace(changed, tuning=Tuning(tuple(tuned), tuning.strength / strength, tuning.phase))


def _layers(text: object) -> tuple[int, ...]:
    """The inverse of `spans`, for text that may be hostile: its numbers must rise before any range is filled."""
    if isinstance(text, str) and len(text) <= MAX_TEXT:
        numbers = [int(number) for number in re.findall(r"[0-9]{1,5}", text)]
        if numbers and numbers == sorted(set(numbers)):
            layers = parse_layers(text)
            if spans(layers) == text:
                return layers
    raise VectorError(f"cannot read its layers {str(text)[:40]!r}; they are written as 3 or 1-5 or 1-2, 7")
