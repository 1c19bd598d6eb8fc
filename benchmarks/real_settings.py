"""What the experiment on a real model asks: one TOML a model in benchmarks/settings, and files of problems.

Takes paths, gives frozen values and tasks that share no problem. It runs no model.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from seen_problems import Seen, seen_draws, without_seen

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.sweep_cells import RULES, Rule
from edge_steer.pairs.pair import Pair
from edge_steer.storage.files import read_lines
from edge_steer.storage.toml import TomlTable
from edge_steer.tasks.calibration import leave_out_evaluation_problems
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Task

MAIN = ("unsteered", "dense", "line-breaks", "terse")


@dataclass(frozen=True)
class PairSettings:
    """problems: of train, the first ones. solutions: used at most. samples: of each under the dense instruction.

    wrong: use whole solutions with a wrong answer too.
    """

    problems: int
    solutions: int
    max_tokens: int
    samples: int
    temperature: float
    wrong: bool


@dataclass(frozen=True)
class DevSettings:
    """problems: of train, behind those of the pairs; `confirm` others are for the chosen cell.

    layers, strengths, terse_strengths: as a sweep takes them. choose, margin: of a Rule. otherwise: the layer at which
    vectors are tested at strength 0.1 where the dense one's choice is the unsteered model. coarse: which layers are
    swept at all; None takes all of `layers`. terse: the cell of "terse" that an earlier run named; None sweeps for one.
    """

    problems: int
    confirm: int
    coarse: "CoarseSettings | None"
    layers: str
    strengths: str
    terse_strengths: str
    otherwise: int
    max_tokens: int
    choose: Rule
    margin: float
    terse: "TerseCell | None"


@dataclass(frozen=True)
class TerseCell:
    """Where the terse vector is tested."""

    layer: int
    strength: float


@dataclass(frozen=True)
class CoarseSettings:
    """A first sweep of `layers` on `problems` others; the best cells' `finalists` layers are swept again.

    margin: of accuracy, wider than the fine sweep's where one problem is a large share.
    """

    problems: int
    layers: str
    strengths: str
    terse_strengths: str
    finalists: int
    margin: float


@dataclass(frozen=True)
class TestSettings:
    """draw: problems of test, by seed 0, and `further` of the others, answered in blocks of `block`; `blocks` of them.

    seen: what earlier runs drew, one run after the other, and is left out. main: the methods that every block is
    asked with; the first `controls` are asked with all, and the first one is scored. random: vectors of the norm of
    "dense"; random_terse: of that of "terse", where it is.
    """

    draw: int
    further: int
    seen: tuple[Seen, ...]
    block: int
    blocks: int
    controls: int
    max_tokens: int
    random: int
    random_terse: int
    main: tuple[str, ...]


@dataclass(frozen=True)
class FileSettings:
    """Files beside the twin: the first `problems` of the test under `methods`.

    quants: of the twin; the model's own type is the model's own file.
    """

    quants: tuple[str, ...]
    problems: int
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """One experiment. name: of its file; model: a MODEL; quant: the type of its twin that is run."""

    name: str
    model: str
    quant: str
    pairs: PairSettings
    dev: DevSettings
    test: TestSettings
    files: FileSettings | None


@dataclass(frozen=True)
class Problems:
    """Tasks that share no problem, and the published rewrites, whose problems are in none of them."""

    pairs: Task
    dev: Task
    test: Task
    rewrites: tuple[Pair, ...]


def read_settings(path: str | Path) -> Settings:
    """Errors: EdgeSteerError for a key that is missing, unknown or of another type."""
    table = TomlTable(path, "settings of an experiment")
    pairs, dev, test = table.tables("pairs", "dev", "test")
    settings = Settings(
        Path(path).stem,
        table.text("model"),
        table.text("quant"),
        PairSettings(
            pairs.whole("problems"),
            pairs.whole("solutions"),
            pairs.whole("max_tokens"),
            pairs.whole("samples"),
            pairs.number("temperature"),
            pairs.flag("wrong", False),
        ),
        DevSettings(
            dev.whole("problems"),
            dev.whole("confirm"),
            _coarse(dev),
            dev.text("layers", optional=True),
            dev.text("strengths"),
            dev.text("terse_strengths", optional=True),
            dev.whole("otherwise"),
            dev.whole("max_tokens"),
            _rule(dev),
            dev.number("margin"),
            _terse(dev),
        ),
        TestSettings(
            test.whole("draw"),
            test.whole("further", 0),
            seen_draws(test),
            test.whole("block"),
            test.whole("blocks"),
            test.whole("controls", 1),
            test.whole("max_tokens"),
            test.whole("random"),
            test.whole("random_terse", 0),
            test.texts("main", MAIN),
        ),
        _files(table),
    )
    for part in (pairs, dev, test, table):
        part.finish()
    return settings


def read_problems(settings: Settings, train: str, test: str, rewrites: str | Path | None) -> Problems:
    """Calibration, dev and test problems. train, test: tasks, such as gsm8k=FILE. rewrites: JSONL, or None for none."""
    tested = load_task(test)
    records = [json.loads(line) for line in read_lines(rewrites, "rewrites")] if rewrites else []
    rewritten = {str(record["doc_id"]) for record in records}
    questions = {sample.id: sample for sample in tested.samples}
    calibration = leave_out_evaluation_problems(load_task(train), [tested])
    count = settings.pairs.problems
    return Problems(
        pairs=calibration.limit(count).with_settings(max_tokens=settings.pairs.max_tokens),
        dev=replace(calibration, samples=calibration.samples[count:]).with_settings(max_tokens=settings.dev.max_tokens),
        test=_drawn(replace(tested, samples=tuple(s for s in tested.samples if s.id not in rewritten)), settings.test),
        rewrites=tuple(
            Pair(
                tested.settings.prompt.replace("{question}", questions[str(record["doc_id"])].question),
                record["positive"],
                record["negative"],
                questions[str(record["doc_id"])].answer,
                str(record["doc_id"]),
                tested.settings.system,
            )
            for record in records
        ),
    )


def _drawn(task: Task, test: TestSettings) -> Task:
    """The problems of the test, those of the first draw before the others."""
    unseen = without_seen(task, test.seen)
    drawn = unseen.subset(test.draw).samples
    if test.further:
        drawn += without_seen(unseen, [Seen(test.draw, test.draw)]).subset(test.further).samples
    return replace(task, samples=drawn).with_settings(max_tokens=test.max_tokens)


def _terse(dev: TomlTable) -> TerseCell | None:
    if (table := dev.table("terse")) is None:
        return None
    cell = TerseCell(table.whole("layer"), table.number("strength"))
    table.finish()
    return cell


def _files(settings: TomlTable) -> FileSettings | None:
    if (table := settings.table("files")) is None:
        return None
    files = FileSettings(table.texts("quants"), table.whole("problems"), table.texts("methods"))
    table.finish()
    return files


def _coarse(dev: TomlTable) -> CoarseSettings | None:
    table = dev.table("coarse")
    if table is None:
        return None
    coarse = CoarseSettings(
        table.whole("problems"),
        table.text("layers"),
        table.text("strengths"),
        table.text("terse_strengths", optional=True),
        table.whole("finalists"),
        table.number("margin"),
    )
    table.finish()
    return coarse


def _rule(table: TomlTable) -> Rule:
    named = table.text("choose")
    rule = next((rule for rule in RULES if rule == named), None)
    if rule is None:
        raise EdgeSteerError(f"{table.path}: choose: allowed are {', '.join(RULES)}")
    return rule
