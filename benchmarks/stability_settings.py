"""What a stability run asks: benchmarks/settings/NAME-stability.toml, and the experiment that it belongs to.

Takes paths, gives frozen values. It runs no model.
"""

from dataclasses import dataclass
from pathlib import Path

from real_settings import Settings, read_settings

from edge_steer.core.vector import SteeringVector
from edge_steer.storage.toml import TomlTable
from edge_steer.vectors.read import load as load_vector


@dataclass(frozen=True)
class Temperatures:
    """problems: of test. samples: of each at a temperature above 0."""

    values: tuple[float, ...]
    problems: int
    samples: int


@dataclass(frozen=True)
class Draws:
    """pool: pairs of written solutions. counts: pairs of a draw; draws: most of one count. problems: of test."""

    pool: int
    counts: tuple[int, ...]
    draws: int
    problems: int


@dataclass(frozen=True)
class Choice:
    """problems: of test, on which every cell is asked. resamples: of the dev problems."""

    problems: int
    resamples: int


@dataclass(frozen=True)
class Stability:
    """One run. experiment: the settings whose model, problems, vectors and dev rows are used. vector: the one tested.

    behind: how many test problems are left out, since earlier measurements had them. A part that is None is not run.
    """

    name: str
    experiment: Settings
    vector: SteeringVector
    behind: int
    temperature: Temperatures | None
    draws: Draws | None
    choice: Choice | None


def read_stability(path: str | Path) -> Stability:
    """Errors: EdgeSteerError for a key that is missing, unknown or of another type."""
    table = TomlTable(path, "settings of a stability run")
    settings = Stability(
        Path(path).stem,
        read_settings(Path(path).with_name(f"{table.text('experiment')}.toml")),
        load_vector(table.text("vector")),
        table.whole("behind"),
        _temperatures(table),
        _draws(table),
        _choice(table),
    )
    table.finish()
    return settings


def _temperatures(settings: TomlTable) -> Temperatures | None:
    if (table := settings.table("temperature")) is None:
        return None
    values = tuple(map(float, table.text("values").split(",")))
    part = Temperatures(values, table.whole("problems"), table.whole("samples"))
    table.finish()
    return part


def _draws(settings: TomlTable) -> Draws | None:
    if (table := settings.table("draws")) is None:
        return None
    counts = tuple(map(int, table.text("counts").split(",")))
    part = Draws(table.whole("pool"), counts, table.whole("draws"), table.whole("problems"))
    table.finish()
    return part


def _choice(settings: TomlTable) -> Choice | None:
    if (table := settings.table("choice")) is None:
        return None
    part = Choice(table.whole("problems"), table.whole("resamples"))
    table.finish()
    return part
