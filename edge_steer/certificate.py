"""A certificate: what was compared with what, under which conditions, every figure, and a verdict for each file.

Takes what the reference says, GGUF files of the same model and a way to open them; leaves in a folder certificate.json,
the texts that were compared on, the rows of both sides and a Markdown summary. A certificate can be run again: files
and vector must be the same by digest, and the figures must come out again. docs/certificate.md describes the files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_steer import behaviour
from edge_steer.backend import Backend
from edge_steer.baseline import Baseline, Text, described
from edge_steer.errors import EdgeSteerError
from edge_steer.evaluate import Row
from edge_steer.files import digest, readable, replacing
from edge_steer.grading import Graders
from edge_steer.parity import Progress, Report, against
from edge_steer.store import Store
from edge_steer.tasks import Task
from edge_steer.tolerances import overall, tolerance_of
from edge_steer.vector import Steering

FORMAT = "edge-steer certificate 1"
CERTIFICATE, TEXTS, SUMMARY, ROWS = "certificate.json", "texts.jsonl", "summary.md", "rows"
# What a figure may differ by when a certificate is run again: relative and absolute. The same machine gives the same
# figures; another processor rounds otherwise.
AGAIN = {
    "unsteered mean KL": (0.2, 1e-6),
    "steered mean KL": (0.2, 1e-6),
    "unsteered same first choice": (0.0, 0.005),
    "steered same first choice": (0.0, 0.005),
    "effect cosine": (0.0, 0.003),
    "effect length": (0.0, 0.005),
}


@dataclass(frozen=True)
class File:
    """A GGUF to certify. source: what it was made from or where it lies, as the certificate names it."""

    path: Path
    quant: str
    source: str


@dataclass(frozen=True)
class Again:
    """A figure of a certificate and what it is now. holds: whether that is the same, see AGAIN."""

    file: str
    figure: str
    recorded: float
    found: float
    holds: bool


OpenFile = Callable[[File], AbstractContextManager[Backend]]


def certify(
    folder: Path,
    baseline: Baseline,
    answers: behaviour.Rows,
    task: Task | None,
    files: Sequence[File],
    steering: Sequence[Steering],
    *,
    stated: Mapping[str, object],
    conditions: Mapping[str, Mapping[str, object]],
    changes: Mapping[str, float],
    open_file: OpenFile,
    graders: Graders | None,
    progress: Progress,
) -> dict[str, Any]:
    """Compare every file with the baseline, and write the certificate; what was written.

    answers: the reference's rows by dose; with none, or without a task and graders, behaviour is not compared.
    stated: what the certificate says of reference, vector and versions. conditions: by quant, how the file is run.
    changes: tolerances in place of those of the quants. Rows of an interrupted run are taken up again.
    Errors: EdgeSteerError for a quant without tolerances, or rows in the folder that were made otherwise.
    """
    allowed = {file.quant: tolerance_of(file.quant, changes) for file in files}
    if len(allowed) < len(files):
        raise EdgeSteerError("two files are of the same type; make a certificate for each in a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    _write_texts(folder / TEXTS, baseline)
    entries = []
    for file in files:
        entry: dict[str, Any] = {
            "quant": file.quant,
            "source": file.source,
            "file": file.path.name,
            "digest": digest(file.path),
            "bytes": file.path.stat().st_size,
            "conditions": {**conditions[file.quant]},
        }
        with open_file(file) as backend:
            report = against(baseline, backend, steering, file.quant, allowed[file.quant], progress=progress)
            findings = list(report.findings)
            found: list[behaviour.Dose] = []
            if answers and task and graders:
                entry["rows"] = f"{ROWS}/{file.quant}.jsonl"
                header = rows_header(entry["digest"], task, described(steering), list(answers), entry["conditions"])
                with Store.open(folder / entry["rows"], header) as store:
                    rows = behaviour.rows_of(
                        backend, task, steering, list(answers), store=store, graders=graders, progress=progress
                    )  # fmt: skip
                found = behaviour.doses(answers, rows, lambda text: backend.encode(text, start=False))
                findings += behaviour.findings(found, allowed[file.quant].accuracy)
        entries.append(
            {
                **entry,
                **{key: value for key, value in asdict(report).items() if key not in ("quant", "findings")},
                "behaviour": [asdict(dose) for dose in found],
                "findings": [asdict(finding) for finding in findings],
                "verdict": overall([finding.verdict for finding in findings]),
            }
        )
    told = {
        "format": FORMAT,
        **stated,
        "reference_steering": list(baseline.steering),
        "steering": described(steering),
        "texts": {
            "file": TEXTS,
            "digest": digest(folder / TEXTS),
            "unsteered": len(baseline.unsteered),
            "steered": len(baseline.steered),
        },
        "task": None if task is None else _task(task),
        "doses": sorted(answers),
        "changes": {**changes},
        "files": entries,
        "verdict": overall([entry["verdict"] for entry in entries]),
    }
    certificate: dict[str, Any] = json.loads(json.dumps(told, allow_nan=False))
    for name, text in ((CERTIFICATE, json.dumps(certificate, indent=1) + "\n"), (SUMMARY, markdown(certificate))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return certificate


def rows_header(
    model: str,
    task: Task,
    steering: Sequence[Mapping[str, object]],
    doses: Sequence[float],
    conditions: Mapping[str, object],
) -> dict[str, object]:
    """What the rows of one side depend on. model: a digest or a revision."""
    return {
        "format": behaviour.FORMAT,
        "model": model,
        "steering": [{**one} for one in steering],
        "doses": list(doses),
        "task": _task(task),
        "conditions": {**conditions},
    }


def load(path: Path) -> dict[str, Any]:
    """A certificate. Errors: EdgeSteerError for a file that is none, or of another version."""
    try:
        found = json.loads(readable(path, "a certificate of edge-steer").read_text("utf-8"))
    except ValueError as error:
        raise EdgeSteerError(f"{path} is no certificate: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise EdgeSteerError(f"{path} is no certificate that this edge-steer reads; expected the format {FORMAT!r}")
    missing = {"reference", "vectors", "steering", "reference_steering", "texts", "files", "verdict"} - {*found}
    if missing:
        raise EdgeSteerError(f"{path} is no whole certificate: it lacks {', '.join(sorted(missing))}")
    return found


def texts_of(path: Path, certificate: Mapping[str, Any]) -> tuple[list[Text], list[Text]]:
    """The texts, unsteered and steered, that lie beside the certificate at `path`.

    Errors: EdgeSteerError where they are missing or others.
    """
    file = path.parent / certificate["texts"]["file"]
    if digest(readable(file, "the texts of the certificate")) != certificate["texts"]["digest"]:
        raise EdgeSteerError(f"{file} holds other texts than the certificate was made with; restore it")
    found: dict[str, list[Text]] = {"unsteered": [], "steered": []}
    for line in file.read_text("utf-8").splitlines():
        told = json.loads(line)
        found[told["set"]].append(Text(tuple(told["tokens"]), told["prompt"]))
    return found["unsteered"], found["steered"]


def entry_of(certificate: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the certificate says of a file. Errors: EdgeSteerError if it is for other files."""
    found = digest(path)
    for entry in certificate["files"]:
        if entry["digest"] == found:
            return dict(entry)
    known = ", ".join(f"{entry['file']} ({entry['digest'][:12]})" for entry in certificate["files"])
    raise EdgeSteerError(f"the certificate is not for {path} ({found[:12]}); it is for {known}")


def check_steering(certificate: Mapping[str, Any], steering: Sequence[Steering]) -> None:
    """Errors: EdgeSteerError if the certificate is for another vector, strength, layers or phase."""
    asked, told = described(steering), certificate["steering"]
    for mine, theirs in zip(asked, told, strict=False):
        for key, value in mine.items():
            if value != theirs[key]:
                raise EdgeSteerError(f"the certificate is for another steering: {key} is {theirs[key]}, not {value}")
    if len(asked) != len(told):
        raise EdgeSteerError(f"the certificate is for {len(told)} vectors; {len(asked)} given")


def again(entry: Mapping[str, Any], report: Report) -> list[Again]:
    """The figures of a file's entry against those of a new report."""
    recorded, found = _figures(entry), _figures(asdict(report))
    return [
        Again(entry["file"], name, recorded[name], found[name], _holds(recorded[name], found[name], *AGAIN[name]))
        for name in recorded
        if name in found
    ]


def markdown(certificate: Mapping[str, Any]) -> str:
    """A summary to paste into a model card."""
    reference = certificate["reference"]
    lines = [
        f"# Parity of {reference['name']}, steered",
        "",
        f"Reference: {reference['name']} in PyTorch, {reference['dtype']}. "
        f"KL(reference \\|\\| file) in nats a token, on {certificate['texts']['unsteered']} unsteered and "
        f"{certificate['texts']['steered']} steered texts of the reference. Verdict: **{certificate['verdict']}**.",
        "",
        "| file | KL unsteered | KL steered | same top-1, steered | effect: cosine, length | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for entry in certificate["files"]:
        steered, effect = entry["steered"], entry["effect"]
        lines.append(
            f"| {entry['quant']} | {entry['unsteered']['kl']['mean']:.2g} | "
            + (f"{steered['kl']['mean']:.2g} | {steered['top1']:.1%} | " if steered else "| | ")
            + (f"{effect['cosine']:.4f}, {effect['norm']:.3f} | " if effect else "| ")
            + f"{entry['verdict']} |"
        )
    for entry in certificate["files"]:
        for finding in entry["findings"]:
            if finding["verdict"] != "pass":
                sign = "at most" if finding["at_most"] else "at least"
                lines += ["", f"{entry['quant']}: {finding['name']} is {finding['value']:.3g}, {sign} "
                          f"{finding['tolerance']:.3g} allowed: {finding['verdict']}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def answers_of(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> behaviour.Rows:
    """Rows by dose from what a saved reference tells."""
    return {float(dose): [Row.of(record) for record in rows] for dose, rows in records.items()}


def _figures(told: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name in ("unsteered", "steered"):
        if told[name]:
            found[f"{name} mean KL"] = told[name]["kl"]["mean"]
            found[f"{name} same first choice"] = told[name]["top1"]
    if told["effect"]:
        found |= {"effect cosine": told["effect"]["cosine"], "effect length": told["effect"]["norm"]}
    return found


def _holds(recorded: float, found: float, relative: float, absolute: float) -> bool:
    return abs(found - recorded) <= relative * abs(recorded) + absolute


def _task(task: Task) -> dict[str, object]:
    return {
        "name": task.name,
        "digest": task.digest,
        "problems": len(task.samples),
        "grader": task.grader,
        "settings": asdict(task.settings),
    }


def _write_texts(path: Path, baseline: Baseline) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for name, texts in (("unsteered", baseline.unsteered), ("steered", baseline.steered)):
            for text in texts:
                file.write(json.dumps({"set": name, "prompt": text.prompt, "tokens": text.tokens}) + "\n")
