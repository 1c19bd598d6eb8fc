"""The page of a certificate for people: report.html, one file that loads nothing else.

Takes a certificate, the rows of both sides and the problems; gives verdicts first, then plots, every figure, and the
answers that went wrong or parted earliest, side by side. The text is in page.html.j2, which escapes whatever a
certificate, a text or a name holds. It runs no model. Without matplotlib there are no plots.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import jinja2

from edge_steer.certificates.behaviour import Rows, name_of
from edge_steer.evaluation import plots, svg
from edge_steer.storage import records
from edge_steer.storage.files import size_in_words, write_text
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Sample

PAGE, TEMPLATE = "report.html", "page.html.j2"
EXAMPLES = 3  # of each kind, for each file
SHOWN_BEFORE, SHOWN_AFTER = 400, 1200  # characters of a text, before where it parts and after
PIECE = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
BLANKS = re.compile(r"[^\S\r\n]+(?=\S)")
GLYPHS = dict(zip(plots.MARKERS, "●■▲◆▼✖✚★", strict=True))
WORDS = {"pass": "within tolerance", "fail": "out of tolerance", "not enough data": "not enough data"}
EFFECT = {"cosine": "Effect of steering: cosine", "norm": "Effect of steering: relative length"}
QUANTITIES: tuple[tuple[str, str, plots.Format], ...] = (
    ("accuracy", "Accuracy", "share"),
    ("steps", "Steps", "number"),
    ("tokens", "Tokens", "number"),
    ("density", "Density, tokens per step", "number"),
    ("nll", "NLL, nats per token", "number"),
)


@dataclass(frozen=True)
class Plot:
    """An <svg> with a title, and in words what it shows."""

    title: str
    svg: str
    told: str


@dataclass(frozen=True)
class Side:
    """One side's answer, cut where the two part: what both say, the gap and the piece where they differ, and the rest.

    gap: blanks before the piece, which has its line breaks. marked: "" where the text has ended. left_out: how many
    characters before and after are not shown.
    """

    row: Row
    common: str
    gap: str
    marked: str
    rest: str
    left_out: tuple[int, int]


@dataclass(frozen=True)
class Example:
    """A problem that the two answer differently. tokens: how many they have in common. sample: None if unknown."""

    id: str
    dose: float
    tokens: int
    sample: Sample | None
    reference: Side
    file: Side

    @property
    def turned_wrong(self) -> bool:
        return self.reference.row.correct and not self.file.row.correct


def write(folder: Path, certificate: Mapping[str, Any], answers: Rows, samples: Iterable[Sample] = ()) -> Path:
    """report.html in the certificate's folder; its path. The files' rows are read from there.

    answers: the reference's rows by dose. samples: the problems, to show what was asked. Errors: EdgeSteerError for
    rows that are missing or damaged, or a folder that cannot be written.
    """
    others = {
        entry["quant"]: rows_in(folder / entry["rows"], certificate["doses"])
        for entry in certificate["files"]
        if entry["behaviour"]
    }
    return write_text(folder / PAGE, page(certificate, answers, others, samples))


def rows_in(path: Path, doses: Sequence[float]) -> Rows:
    """The rows that lie beside a certificate, by dose. Errors: EdgeSteerError for any other file."""
    rows = {row.key: row for row in map(Row.of, records.read(path)[1])}
    return {dose: [row for row in rows.values() if row.method == name_of(dose)] for dose in doses}


def page(
    certificate: Mapping[str, Any], answers: Rows, others: Mapping[str, Rows], samples: Iterable[Sample] = ()
) -> str:
    """The page as HTML. answers: the reference's rows by dose; others: by type, those of each file."""
    problems = {sample.id: sample for sample in samples}
    files = certificate["files"]
    glyphs = [GLYPHS[plots.MARKERS[i % len(GLYPHS)]] for i in range(len(files))]
    return _template().render(
        certificate=certificate,
        files=files,
        steered=any(entry["steered"] for entry in files),
        main=_main_dose(files),
        response=_response(files),
        distances=_distances(files),
        key=[(svg.colour_of(i), glyph, files[i]["quant"]) for i, glyph in enumerate(glyphs)],
        conditions=_conditions(files),
        examples=[
            (entry, examples(entry["behaviour"], answers, others.get(entry["quant"], {}), problems))
            for entry in files
            if entry["behaviour"]
        ],
    )


def examples(
    behaviour: Sequence[Mapping[str, Any]], answers: Rows, rows: Rows, problems: Mapping[str, Sample]
) -> list[Example]:
    """The worst of one file: answers that are wrong where the reference's are right, then those that part earliest.

    behaviour: what the certificate says of the file, dose by dose. Up to EXAMPLES of each kind and no problem twice;
    those at dose 1 come first, then unsteered ones, then all others.
    """
    found = []
    for told in sorted(behaviour, key=lambda told: (told["dose"] != 1, told["dose"] != 0, told["dose"])):
        ours, theirs = ({row.id: row for row in side.get(told["dose"], ())} for side in (answers, rows))
        found += [
            Example(id, told["dose"], tokens, problems.get(id), *sides(ours[id], theirs[id]))
            for id, tokens in told["parted"]
            if id in ours and id in theirs
        ]
    wrong = _distinct(example for example in found if example.turned_wrong)
    named = {example.id for example in wrong}
    return wrong + _distinct(example for example in found if example.id not in named)


def sides(ours: Row, theirs: Row) -> tuple[Side, Side]:
    """Two answers cut at the first word, number or sign in which they differ, with the space before it."""
    a, b = PIECE.findall(ours.text), PIECE.findall(theirs.text)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return _side(ours, a, common), _side(theirs, b, common)


def _side(row: Row, pieces: Sequence[str], common: int) -> Side:
    before, piece, rest = (
        "".join(part) for part in (pieces[:common], pieces[common : common + 1], pieces[common + 1 :])
    )
    first = max(0, len(before) - SHOWN_BEFORE)
    blanks = BLANKS.match(piece)
    return Side(
        row=row,
        common=before[first:],
        gap=blanks[0] if blanks else "",
        marked=piece[blanks.end() :] if blanks else piece,
        rest=rest[:SHOWN_AFTER],
        left_out=(first, max(0, len(rest) - SHOWN_AFTER)),
    )


def _distinct(found: Iterable[Example]) -> list[Example]:
    first: dict[str, Example] = {}
    for example in found:
        first.setdefault(example.id, example)
    return list(first.values())[:EXAMPLES]


def _main_dose(files: Sequence[Mapping[str, Any]]) -> float | None:
    """The dose whose accuracy the summary shows: as steered, else unsteered; None without behaviour."""
    return max((told["dose"] for entry in files for told in entry["behaviour"] if told["dose"] in (0, 1)), default=None)


def _response(files: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Each quantity over the dose; none for a single dose."""
    if not find_spec("matplotlib") or any(len(entry["behaviour"]) < 2 for entry in files):
        return []
    sides = {"reference": (files[0], "reference")} | {entry["quant"]: (entry, "other") for entry in files}
    plots = []
    for figure, title, format in QUANTITIES:
        curves = {
            name: [(told["dose"], _point(**told[side]["figures"][figure])) for told in entry["behaviour"]]
            for name, (entry, side) in sides.items()
            if all(figure in told[side]["figures"] for told in entry["behaviour"])
        }
        if len(curves) < len(sides):
            continue
        show = _percent if format == "share" else _number
        told = "; ".join(
            f"{name} " + ", ".join(f"{show(point.value)} at {_given(dose)}" for dose, point in curve)
            for name, curve in curves.items()
        )
        reference, *others = curves.values()
        plots.append(Plot(title, svg.svg_response(figure, reference, others, format), told))
    return plots


def _distances(files: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """KL, and cosine and length of the effect, of every file against what is allowed of its type."""
    if not find_spec("matplotlib"):
        return []
    series = [name for name in ("unsteered", "steered") if any(entry[name] for entry in files)]
    rows = [
        svg.Measured(
            entry["quant"],
            [_point(told["kl"]["mean"], told["kl_interval"]) if (told := entry[name]) else None for name in series],
            (None, entry["tolerance"]["kl"]),
        )
        for entry in files
    ]
    plots = [_distance("kl", "Mean KL, nats per token", rows, series)]
    for name, title in EFFECT.items():
        rows = [
            svg.Measured(
                entry["quant"],
                [_point(entry["effect"][at], entry["effect"][f"{at}_interval"]) for at in (f"residual_{name}", name)],
                _allowed(name, entry["tolerance"][name]),
            )
            for entry in files
            if entry["effect"]
        ]
        if rows:
            plots.append(_distance(name, title, rows, ("on the residual stream", "on the logits")))
    return plots


def _distance(name: str, title: str, rows: Sequence[svg.Measured], series: Sequence[str]) -> Plot:
    told = "; ".join(
        f"{row.name} "
        + ", ".join(f"{_number(point.value)} {of}" for of, point in zip(series, row.points, strict=True) if point)
        for row in rows
    )
    return Plot(title, svg.svg_measured(name, rows, log=name == "kl"), told)


def _allowed(name: str, tolerance: float) -> tuple[float | None, float | None]:
    """Of the effect's cosine, which may be no smaller; of its length, which may be off to either side."""
    return (tolerance, None) if name == "cosine" else (1 - tolerance, 1 + tolerance)


def _point(mean: float, interval: Sequence[float] | None) -> plots.Point:
    low, high = interval or (mean, mean)
    return plots.Point(mean, low, high)


def _conditions(files: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], list[str]]]:
    """How files are run, those alike together."""
    found: dict[tuple[str, ...], list[str]] = {}
    for entry in files:
        told = (f"{name.replace('_', ' ')} {_setting(value)}" for name, value in entry["conditions"].items())
        found.setdefault(tuple(told), []).append(entry["quant"])
    return [(names, list(told)) for told, names in found.items()]


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "as needed" if value is None else str(value)


def _number(value: float | None) -> str:
    """A measured number: three digits, four decimals next to 1, powers of ten where zeros would lead; "" for None."""
    if value is None:
        return ""
    size = abs(value)
    if size >= 999.5 or not size:
        text = f"{size:,.0f}"
    elif 0.9 < size < 1.1:
        text = f"{size:.4f}"
    elif size < 1e-3:
        digits, exponent = f"{size:.1e}".split("e")
        text = f"{digits}\N{MULTIPLICATION SIGN}{svg.power_of_ten(int(exponent))}"
    else:
        text = f"{size:#.3g}".rstrip(".")
    return _signed(value, text)


def _given(value: float) -> str:
    """A number that someone wrote, as it was written."""
    return _signed(value, _number(abs(value)) if 0 < abs(value) < 1e-3 else f"{abs(value):g}")


def _percent(share: float, decimals: int = 1) -> str:
    """0.125 -> 12.5%"""
    return _signed(share, f"{abs(share):.{decimals}%}")


def _signed(value: float, text: str) -> str:
    return f"\N{MINUS SIGN}{text}" if value < 0 and text.strip("0.%") else text


def _span(interval: Sequence[float] | None, share: bool = False) -> str:
    show = _percent if share else _number
    return f"{show(interval[0])} to {show(interval[1])}" if interval else ""


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edge_steer.certificates", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number, "given": _given, "percent": _percent, "span": _span, "size": size_in_words
    }  # fmt: skip
    environment.globals |= {"WORDS": WORDS, "EXAMPLES": EXAMPLES}
    return environment.get_template(TEMPLATE)
