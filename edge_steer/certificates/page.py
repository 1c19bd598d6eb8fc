"""The page of a certificate for people: report.html, one file that loads nothing else.

Takes a certificate, the rows of both sides and the problems; gives verdicts first, then plots, every figure, and the
answers that went wrong or parted earliest, side by side. The text is in page.html.j2, which escapes whatever a
certificate, a text or a name holds. It runs no model. Without matplotlib there are no plots.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import jinja2

from edge_steer.certificates.behaviour import RowsByDose, dose_name
from edge_steer.certificates.certificate import Certificate, FileEntry
from edge_steer.certificates.examples import EXAMPLES, worst_examples
from edge_steer.core.stats import Interval
from edge_steer.evaluation import plots, svg
from edge_steer.evaluation.figures import FIGURES, Summary, mean_text
from edge_steer.parity.findings import VERDICT_WORDS
from edge_steer.storage import records
from edge_steer.storage.files import size_in_words, write_text
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Sample

PAGE, TEMPLATE = "report.html", "page.html.j2"
GLYPHS = dict(zip(plots.MARKERS, "●■▲◆▼✖✚★", strict=True))
DIRECTION, LENGTH = "Effect of steering: cosine", "Effect of steering: relative length"
ON = ("on the residual stream", "on the logits")


@dataclass(frozen=True)
class Plot:
    """An <svg> with a title, and in words what it shows."""

    title: str
    svg: str
    words: str


def write_page(folder: Path, certificate: Certificate, answers: RowsByDose, samples: Iterable[Sample] = ()) -> Path:
    """report.html in the certificate's folder; its path. The files' rows are read from there.

    answers: the reference's rows by dose. samples: the problems, to show what was asked. Errors: EdgeSteerError for
    rows that are missing or damaged, or a folder that cannot be written.
    """
    others = {
        entry.quant: read_rows(folder / entry.rows, certificate.doses)
        for entry in certificate.files
        if entry.behaviour and entry.rows
    }
    return write_text(folder / PAGE, page(certificate, answers, others, samples))


def read_rows(path: Path, doses: Sequence[float]) -> RowsByDose:
    """The rows that lie beside a certificate, by dose. Errors: EdgeSteerError for any other file."""
    rows = {row.key: row for row in map(Row.of, records.read(path)[1])}
    return {dose: [row for row in rows.values() if row.method == dose_name(dose)] for dose in doses}


def page(
    certificate: Certificate, answers: RowsByDose, others: Mapping[str, RowsByDose], samples: Iterable[Sample] = ()
) -> str:
    """The page as HTML. answers: the reference's rows by dose; others: by type, those of each file."""
    problems = {sample.id: sample for sample in samples}
    files = certificate.files
    glyphs = [GLYPHS[plots.MARKERS[i % len(GLYPHS)]] for i in range(len(files))]
    return _template().render(
        certificate=certificate,
        files=files,
        steered=any(entry.report.steered for entry in files),
        main=_main_dose(files),
        response=_response(files),
        distances=_distances(files),
        key=[(svg.colour_of(i), glyph, files[i].quant) for i, glyph in enumerate(glyphs)],
        conditions=_conditions(files),
        examples=[
            (entry, worst_examples(entry.behaviour, answers, others.get(entry.quant, {}), problems))
            for entry in files
            if entry.behaviour
        ],
    )


def _main_dose(files: Sequence[FileEntry]) -> float | None:
    """The dose whose accuracy the summary shows: as steered, else unsteered; None without behaviour."""
    return max((dose.dose for entry in files for dose in entry.behaviour if dose.dose in (0, 1)), default=None)


def _response(files: Sequence[FileEntry]) -> list[Plot]:
    """Each figure over the dose; none for a single dose."""
    if not find_spec("matplotlib") or any(len(entry.behaviour) < 2 for entry in files):
        return []
    curves: dict[str, list[tuple[float, Summary]]] = {
        "reference": [(dose.dose, dose.reference) for dose in files[0].behaviour],
        **{entry.quant: [(dose.dose, dose.other) for dose in entry.behaviour] for entry in files},
    }
    return [
        _response_plot(name, curves)
        for name in FIGURES
        if all(name in summary.figures for curve in curves.values() for _, summary in curve)
    ]


def _response_plot(name: str, curves: Mapping[str, Sequence[tuple[float, Summary]]]) -> Plot:
    kind = FIGURES[name]
    words = "; ".join(
        f"{side} " + ", ".join(f"{_mean(summary, name)} at {_written(dose)}" for dose, summary in curve)
        for side, curve in curves.items()
    )
    reference, *others = (
        [(dose, _point(summary.figures[name].mean, summary.figures[name].interval)) for dose, summary in curve]
        for curve in curves.values()
    )
    title = kind.title[0].upper() + kind.title[1:]
    return Plot(title, svg.svg_response(name, reference, others, "share" if kind.share else "number"), words)


def _distances(files: Sequence[FileEntry]) -> list[Plot]:
    """KL, and cosine and length of the effect, of every file against what is allowed of its type."""
    if not find_spec("matplotlib"):
        return []
    steered = any(entry.report.steered for entry in files)
    divergences = [
        svg.ToleranceRow(
            entry.quant,
            [
                _point(divergence.kl["mean"], divergence.kl_interval) if divergence else None
                for divergence in (entry.report.unsteered, *([entry.report.steered] if steered else []))
            ],
            (None, entry.report.tolerance.kl),
        )
        for entry in files
    ]
    drawings = [_distance("kl", "Mean KL, nats per token", divergences, ("unsteered", "steered"))]
    effects = [(entry, entry.report.effect) for entry in files if entry.report.effect]
    if not effects:
        return drawings
    cosines, lengths = [], []
    for entry, effect in effects:
        tolerance = entry.report.tolerance
        on_states = _point(effect.residual_cosine, effect.residual_cosine_interval)
        points = on_states, _point(effect.cosine, effect.cosine_interval)
        cosines.append(svg.ToleranceRow(entry.quant, points, (tolerance.cosine, None)))
        points = _point(effect.residual_norm, effect.residual_norm_interval), _point(effect.norm, effect.norm_interval)
        lengths.append(svg.ToleranceRow(entry.quant, points, (1 - tolerance.norm, 1 + tolerance.norm)))
    return [*drawings, _distance("cosine", DIRECTION, cosines, ON), _distance("norm", LENGTH, lengths, ON)]


def _distance(name: str, title: str, rows: Sequence[svg.ToleranceRow], series: Sequence[str]) -> Plot:
    words = "; ".join(
        f"{row.name} "
        + ", ".join(f"{_number(point.value)} {of}" for of, point in zip(series, row.points, strict=False) if point)
        for row in rows
    )
    return Plot(title, svg.svg_tolerances(name, rows, log=name == "kl"), words)


def _point(mean: float, interval: Interval | None) -> plots.Point:
    low, high = interval or (mean, mean)
    return plots.Point(mean, low, high)


def _conditions(files: Sequence[FileEntry]) -> list[tuple[list[str], list[str]]]:
    """How files are run, those alike together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for entry in files:
        values = entry.conditions.to_json().items()
        texts = tuple(f"{name.replace('_', ' ')} {_setting(value)}" for name, value in values)
        alike.setdefault(texts, []).append(entry.quant)
    return [(names, list(texts)) for texts, names in alike.items()]


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


def _written(value: float) -> str:
    """A number that a user chose: no digits are added."""
    return _signed(value, _number(abs(value)) if 0 < abs(value) < 1e-3 else f"{abs(value):g}")


def _percent(share: float, decimals: int = 1) -> str:
    """0.125 -> 12.5%"""
    return _signed(share, f"{abs(share):.{decimals}%}")


def _signed(value: float, text: str) -> str:
    return f"\N{MINUS SIGN}{text}" if value < 0 and text.strip("0.%") else text


def _span(interval: Sequence[float] | None, share: bool = False) -> str:
    show = _percent if share else _number
    return f"{show(interval[0])} to {show(interval[1])}" if interval else ""


def _mean(summary: Summary, name: str) -> str:
    """A figure's mean; "" where the summary lacks it."""
    return mean_text(name, summary.figures[name]) if name in summary.figures else ""


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edge_steer.certificates", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number, "written": _written, "percent": _percent, "span": _span, "size": size_in_words,
        "mean": _mean,
    }  # fmt: skip
    environment.globals |= {"WORDS": VERDICT_WORDS, "EXAMPLES": EXAMPLES}
    return environment.get_template(TEMPLATE)
