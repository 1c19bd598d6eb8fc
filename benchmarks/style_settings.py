"""What a run of real_style.py asks: benchmarks/settings/NAME.toml, and the experiment that it belongs to.

Takes paths, gives frozen values. It runs no model.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from real_settings import Settings, read_settings
from seen_problems import Seen

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.toml import TomlTable

KINDS = ("plain", "terse")


@dataclass(frozen=True)
class Stage:
    """One sweep on problems of its own. margin: of accuracy, which a cell may lose."""

    name: str
    problems: int
    strengths: str
    margin: float


@dataclass(frozen=True)
class Style:
    """One style. experiment: the settings whose model, solutions and test problems are used.

    finalists: layers of the coarse sweep that go on. confirm: problems of train for the chosen cell alone. test:
    problems; random: vectors of the same norm, on the first `random_problems` of them. file_problems: the first of
    them, which are asked of the model's own file too.
    """

    name: str
    experiment: Settings
    kind: str
    coarse: Stage
    fine: Stage
    finalists: int
    confirm: int
    test: int
    random: int
    random_problems: int
    file_problems: int


def read_style(path: str | Path) -> Style:
    """Errors: EdgeSteerError for a key that is missing, unknown or of another type."""
    table = TomlTable(path, "settings of a style")
    coarse, fine, test = table.tables("coarse", "fine", "test")
    kind = table.text("kind")
    if kind not in KINDS:
        raise EdgeSteerError(f"{path}: kind: allowed are {', '.join(KINDS)}")
    experiment = read_settings(Path(path).with_name(f"{table.text('experiment')}.toml"))
    seen = (Seen(test.whole("seen"), experiment.test.draw),)
    unseen = replace(experiment.test, seen=seen, draw=test.whole("draw"))
    style = Style(
        name=Path(path).stem,
        experiment=replace(experiment, test=unseen),
        kind=kind,
        coarse=_stage("coarse", coarse),
        fine=_stage("fine", fine),
        finalists=fine.whole("finalists"),
        confirm=table.whole("confirm"),
        test=test.whole("problems"),
        random=test.whole("random"),
        random_problems=test.whole("random_problems"),
        file_problems=test.whole("file_problems"),
    )
    for part in (coarse, fine, test, table):
        part.finish()
    return style


def _stage(name: str, table: TomlTable) -> Stage:
    return Stage(name, table.whole("problems"), table.text("strengths"), table.number("margin"))
