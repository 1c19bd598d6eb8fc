"""What a stability run asks: benchmarks/settings/NAME-stability.toml, and the experiment that it belongs to.

Takes paths, gives frozen values. It runs no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from real_settings import Settings, read_settings

from edge_steer.core.vector import SteeringVector
from edge_steer.storage.toml import TomlTable
from edge_steer.vectors.read import load as load_vector

PARTS = ("temperature", "draws", "choice")


@dataclass(frozen=True)
class Stability:
    """One run. experiment: the settings whose model, problems, vectors and dev rows are used. vector: the shipped one.

    behind: how many test problems are left out, since earlier measurements had them. problems: of each part.
    samples: of each problem at a temperature above 0. pool: pairs of written solutions. counts: pairs of a draw;
    draws: most of one count. resamples: of the dev problems.
    """

    name: str
    experiment: Settings
    vector: SteeringVector
    behind: int
    problems: Mapping[str, int]
    temperatures: tuple[float, ...]
    samples: int
    pool: int
    counts: tuple[int, ...]
    draws: int
    resamples: int


def read_stability(path: str | Path) -> Stability:
    """Errors: EdgeSteerError for a key that is missing, unknown or of another type."""
    table = TomlTable(path, "settings of a stability run")
    temperature, draws, choice = table.tables(*PARTS)
    settings = Stability(
        name=Path(path).stem,
        experiment=read_settings(Path(path).with_name(f"{table.text('experiment')}.toml")),
        vector=load_vector(table.text("vector")),
        behind=table.whole("behind"),
        problems={name: part.whole("problems") for name, part in zip(PARTS, (temperature, draws, choice), strict=True)},
        temperatures=tuple(map(float, temperature.text("values").split(","))),
        samples=temperature.whole("samples"),
        pool=draws.whole("pool"),
        counts=tuple(map(int, draws.text("counts").split(","))),
        draws=draws.whole("draws"),
        resamples=choice.whole("resamples"),
    )
    for part in (temperature, draws, choice, table):
        part.finish()
    return settings
