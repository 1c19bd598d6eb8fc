"""Making a certificate: the reference asked or read from a file, then each GGUF file held against it.

Takes texts or a task, steerings and files; leaves in a folder certificate.json, the texts that were compared on, the
rows of both sides and a Markdown summary. Rows of a stopped run are taken up again. docs/certificate.md describes the
files, certificate.py reads them.
"""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_steer.certificates import behaviour
from edge_steer.certificates.files import File, opened, stated
from edge_steer.certificates.read import CERTIFICATE, FORMAT, ROWS, SUMMARY, TEXTS, markdown
from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering, described
from edge_steer.llama.library import system_info
from edge_steer.parity.baseline import Baseline, Live
from edge_steer.parity.compare import against
from edge_steer.parity.saved import Saved
from edge_steer.parity.texts import Text
from edge_steer.parity.tolerances import overall, tolerance_of
from edge_steer.storage.digests import digest
from edge_steer.storage.files import replacing
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Task


@dataclass(frozen=True)
class Said:
    """The reference's side: what it says of texts, its answers by dose, and where it comes from."""

    baseline: Baseline
    answers: behaviour.Rows
    source: Mapping[str, Any]


@dataclass(frozen=True)
class Behaviour:
    """Problems that both sides answer, at which doses, and who grades them."""

    task: Task
    doses: Sequence[float]
    graders: Graders


def ask(
    reference: Backend,
    folder: Path,
    steering: Sequence[Steering],
    asked: Behaviour | Sequence[Text],
    *,
    named: str,
    limit: int,
    threads: int | None,
    progress: Progress,
) -> Said:
    """The reference at hand, its answers to problems (in folder/rows) or the texts given.

    named: where it was loaded from. limit: how many texts to compare on. Errors: EdgeSteerError for no texts, or
    where llama.cpp computes otherwise than the model.
    """
    reference.check_comparable(1)
    task = asked.task if isinstance(asked, Behaviour) else None
    source = {
        "name": reference.model.name,
        "source": stated(named, folder),
        "revision": reference.model.revision,
        "dtype": "float32",
        "versions": _versions("edge-steer", "torch", "transformers", "numpy"),
        "task": task.digest if task else None,
    }
    if not isinstance(asked, Behaviour):
        texts = asked[:limit]
        return Said(Live(reference, texts, texts if steering else (), steering), {}, source)
    runs = {"backend": "torch", "dtype": "float32", "threads": threads}
    header = _rows_header(str(reference.model.revision), asked, described(steering), runs)
    answers = _answers(reference, folder / ROWS / "reference.jsonl", header, asked, steering, progress)
    of = {dose: behaviour.texts_of(reference, asked.task, rows)[:limit] for dose, rows in answers.items()}
    return Said(Live(reference, of[0.0], of.get(1.0, ()), steering), answers, source)


def recall(saved: Saved, task: Task | None) -> Said:
    """A saved reference. Errors: EdgeSteerError if it holds no answers to the task's problems."""
    if task and saved.source.get("task") != task.digest:
        raise EdgeSteerError(f"{saved.path} holds no answers to these problems; save it with the same --task")
    answers = {float(dose): [Row.of(record) for record in rows] for dose, rows in saved.answers.items()}
    return Said(saved, answers if task else {}, saved.source)


def certify(
    folder: Path,
    said: Said,
    files: Sequence[File],
    steering: Sequence[Steering],
    asked: Behaviour | None,
    *,
    vectors: Sequence[str],
    reference_vectors: Sequence[str] | None = None,
    changes: Mapping[str, float],
    progress: Progress,
) -> dict[str, Any]:
    """Hold every file against the reference, and write the certificate; what was written.

    steering: what the files are steered with. vectors: the files of it, and of what the reference took if others.
    asked: compares behaviour too. changes: tolerances in place of those of the types.
    Errors: EdgeSteerError for a type without tolerances, or rows in the folder that were made otherwise.
    """
    allowed = {file.quant: tolerance_of(file.quant, changes) for file in files}
    if len(allowed) < len(files):
        raise EdgeSteerError("two files are of the same type; make a certificate for each in a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    baseline = said.baseline
    _write_texts(folder / TEXTS, baseline)
    entries = []
    for file in files:
        entry: dict[str, Any] = {
            "quant": file.quant,
            "source": file.source,
            "file": file.path.name,
            "digest": digest(file.path),
            "bytes": file.path.stat().st_size,
            "conditions": {**file.conditions},
        }
        with opened(file.path, file.conditions) as engine:
            report = against(baseline, engine, steering, file.quant, allowed[file.quant], progress=progress)
            findings = list(report.findings)
            doses: list[behaviour.Dose] = []
            if asked:
                entry["rows"] = f"{ROWS}/{file.quant}.jsonl"
                header = _rows_header(entry["digest"], asked, described(steering), entry["conditions"])
                rows = _answers(engine, folder / entry["rows"], header, asked, steering, progress)
                doses = behaviour.doses(said.answers, rows, lambda text: engine.encode(text, start=False))
                findings += behaviour.findings(doses, allowed[file.quant].accuracy)
        entries.append(
            {
                **entry,
                **{key: value for key, value in asdict(report).items() if key not in ("quant", "findings")},
                "behaviour": [asdict(dose) for dose in doses],
                "findings": [asdict(finding) for finding in findings],
                "verdict": overall([finding.verdict for finding in findings]),
            }
        )
    told = {
        "format": FORMAT,
        "reference": {**said.source},
        "vectors": [stated(vector, folder) for vector in vectors],
        "reference_vectors": [stated(vector, folder) for vector in reference_vectors] if reference_vectors else None,
        "versions": {**_versions("edge-steer"), **system_info()},
        "reference_steering": list(baseline.steering),
        "steering": described(steering),
        "texts": {
            "file": TEXTS,
            "digest": digest(folder / TEXTS),
            "unsteered": len(baseline.unsteered),
            "steered": len(baseline.steered),
        },
        "task": _task(asked.task) if asked else None,
        "doses": sorted(asked.doses) if asked else [],
        "changes": {**changes},
        "files": entries,
        "verdict": overall([entry["verdict"] for entry in entries]),
    }
    certificate: dict[str, Any] = json.loads(json.dumps(told, allow_nan=False))
    for name, text in ((CERTIFICATE, json.dumps(certificate, indent=1) + "\n"), (SUMMARY, markdown(certificate))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return certificate


def _answers(
    backend: Backend,
    path: Path,
    header: Mapping[str, object],
    asked: Behaviour,
    steering: Sequence[Steering],
    progress: Progress,
) -> behaviour.Rows:
    with Store.open(path, header) as store:
        return behaviour.rows_of(
            backend, asked.task, steering, asked.doses, store=store, graders=asked.graders, progress=progress
        )


def _rows_header(
    model: str, asked: Behaviour, steering: Sequence[Mapping[str, object]], conditions: Mapping[str, object]
) -> dict[str, object]:
    """What the rows of one side depend on. model: a digest or a revision."""
    return {
        "format": behaviour.FORMAT,
        "model": model,
        "steering": [{**one} for one in steering],
        "doses": list(asked.doses),
        "task": _task(asked.task),
        "conditions": {**conditions},
    }


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


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
