"""A certificate: what was compared with what, under which conditions, every figure and the verdicts.

Takes and gives certificate.json, whose keys docs/reading-a-certificate.md lists, and the texts that lie beside it. It
runs no model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from edge_steer.certificates.behaviour import Dose
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.parity.baseline import Baseline, SteeringRecord
from edge_steer.parity.compare import Report
from edge_steer.parity.findings import Verdict, overall
from edge_steer.parity.texts import TokenisedText
from edge_steer.storage.digests import digest
from edge_steer.storage.files import readable, write_json, write_text
from edge_steer.tasks.task import TaskSettings

FORMAT = "edge-steer certificate 1"
CERTIFICATE, SUMMARY, TEXTS, ROWS = "certificate.json", "summary.md", "texts.jsonl", "rows"


@dataclass(frozen=True)
class Conditions:
    """How a file ran. repack: whether llama.cpp lays weights out for this CPU, which changes logits."""

    options: EngineOptions
    repack: bool

    def to_json(self) -> dict[str, Any]:
        return {**self.options.described(), "repack": self.repack}


@dataclass(frozen=True)
class FileEntry:
    """One file: what it is, how it ran, what was measured.

    source: what it was made from, or where it lies, as seen from the certificate. file: its name. digest: its SHA-256.
    bytes: its size. rows: its answers' file, if a task was asked. report: the figures; its findings include those of
    the behaviour. behaviour: both sides at every dose.
    """

    source: str
    file: str
    digest: str
    bytes: int
    conditions: Conditions
    rows: str | None
    report: Report
    behaviour: tuple[Dose, ...]

    @property
    def quant(self) -> str:
        return self.report.quant

    @property
    def verdict(self) -> Verdict:
        return self.report.verdict

    def to_json(self) -> dict[str, Any]:
        return {
            "quant": self.quant,
            "source": self.source,
            "file": self.file,
            "digest": self.digest,
            "bytes": self.bytes,
            "conditions": self.conditions.to_json(),
            "rows": self.rows,
            **asdict(self.report),
            "behaviour": [asdict(dose) for dose in self.behaviour],
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class ReferenceSource:
    """Where the reference comes from. revision: a commit, or a digest of the weights. task: the digest of the task.

    settings: how the task was asked; None of a reference that was saved without.
    """

    name: str
    source: str
    revision: str | None
    dtype: str
    versions: Mapping[str, str]
    task: str | None = None
    settings: TaskSettings | None = None

    @property
    def origin(self) -> str:
        """Which weights: "revision 0123456789ab", or of a GGUF "dequantised from 0123456789ab"."""
        *words, digits = str(self.revision).split()
        return " ".join([*(words or ["revision"]), digits[:12]])


@dataclass(frozen=True)
class TextsFile:
    """The texts beside the certificate: the file, its digest, how many are in it."""

    file: str
    digest: str
    unsteered: int
    steered: int


@dataclass(frozen=True)
class TaskEntry:
    """The task that both sides answered; as Task.described."""

    name: str
    digest: str
    problems: int
    grader: str
    settings: TaskSettings


@dataclass(frozen=True)
class Certificate:
    """Files held against one reference under one steering.

    vectors: the vector files, as seen from the certificate; reference_vectors those of the reference, None if the same.
    steering, reference_steering: what files and reference were steered with. versions: of edge-steer and llama.cpp.
    doses: factors on the strength at which the task was answered. changes: tolerances in place of those of the types.
    """

    reference: ReferenceSource
    vectors: tuple[str, ...]
    reference_vectors: tuple[str, ...] | None
    versions: Mapping[str, str]
    reference_steering: tuple[SteeringRecord, ...]
    steering: tuple[SteeringRecord, ...]
    texts: TextsFile
    task: TaskEntry | None
    doses: tuple[float, ...]
    changes: Mapping[str, float]
    files: tuple[FileEntry, ...]

    @property
    def verdict(self) -> Verdict:
        return overall([entry.verdict for entry in self.files])

    def entry_of(self, path: str | Path) -> FileEntry:
        """What it says of a file. Errors: EdgeSteerError if it is for other files."""
        sha256 = digest(path)
        for entry in self.files:
            if entry.digest == sha256:
                return entry
        known = ", ".join(f"{entry.file} ({entry.digest[:12]})" for entry in self.files)
        raise EdgeSteerError(f"the certificate is not for {path} ({sha256[:12]}); it is for {known}")

    def to_json(self) -> dict[str, Any]:
        """What certificate.json holds."""
        return {
            "format": FORMAT,
            **asdict(replace(self, files=())),
            "files": [entry.to_json() for entry in self.files],
            "verdict": self.verdict,
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The inverse of `to_json`. Errors: EdgeSteerError for anything else, or another version."""
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise EdgeSteerError(f"expected the format {FORMAT!r}")
        entries = value.get("files")
        nested = [_nested(entry) for entry in entries] if isinstance(entries, list) else entries
        try:
            return TypeAdapter(cls).validate_python({**value, "files": nested})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"] if part != "report")
            raise EdgeSteerError(f"{place}: {first['msg']}") from None

    def write(self, folder: str | Path) -> Path:
        """certificate.json in a folder; its path. Errors: EdgeSteerError where it cannot be written."""
        return write_json(Path(folder) / CERTIFICATE, self.to_json())


def _nested(entry: object) -> object:
    """A file's entry with its report and its engine options as values of their own."""
    if not isinstance(entry, Mapping) or not isinstance(conditions := entry.get("conditions"), Mapping):
        return entry
    lora = {"lora": {"path": "", **adapter}} if isinstance(adapter := conditions.get("lora"), Mapping) else {}
    options = {**conditions, **lora}
    return {"rows": None, **entry, "report": entry, "conditions": {**conditions, "options": options}}


def read_certificate(path: str | Path) -> Certificate:
    """A certificate. Errors: EdgeSteerError for a file that is none, or of another version."""
    path = Path(path)
    try:
        return Certificate.from_json(json.loads(readable(path, "a certificate of edge-steer").read_text("utf-8")))
    except ValueError as error:
        raise EdgeSteerError(f"{path} is no certificate: {error}") from None
    except EdgeSteerError as error:
        raise EdgeSteerError(f"{path} is no certificate that this edge-steer reads: {error}") from None


def write_texts(folder: Path, baseline: Baseline) -> TextsFile:
    """texts.jsonl in the certificate's folder. Errors: EdgeSteerError where it cannot be written."""
    lines = [
        json.dumps({"set": name, "prompt": text.prompt, "tokens": text.tokens}) + "\n"
        for name, texts in (("unsteered", baseline.unsteered), ("steered", baseline.steered))
        for text in texts
    ]
    path = write_text(folder / TEXTS, "".join(lines))
    return TextsFile(TEXTS, digest(path), len(baseline.unsteered), len(baseline.steered))


def read_certified_texts(folder: Path, texts: TextsFile) -> tuple[list[TokenisedText], list[TokenisedText]]:
    """The texts, unsteered and steered, that lie beside a certificate. Errors: EdgeSteerError where they are others."""
    path = folder / texts.file
    if digest(readable(path, "the texts of the certificate")) != texts.digest:
        raise EdgeSteerError(f"{path} holds other texts than the certificate was made with; restore it")
    by_set: dict[str, list[TokenisedText]] = {"unsteered": [], "steered": []}
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        by_set[record["set"]].append(TokenisedText(tuple(record["tokens"]), record["prompt"]))
    return by_set["unsteered"], by_set["steered"]


def check_steering(recorded: Sequence[SteeringRecord], steering: Iterable[SteeringRecord]) -> None:
    """Errors: EdgeSteerError if a certificate's steering is another one than this."""
    steering = tuple(steering)
    for theirs, ours in zip(recorded, steering, strict=False):
        for name, value in vars(ours).items():
            if value != getattr(theirs, name):
                raise EdgeSteerError(
                    f"the certificate is for another steering: {name} is {getattr(theirs, name)}, not {value}"
                )
    if len(recorded) != len(steering):
        raise EdgeSteerError(f"the certificate is for {len(recorded)} vectors; {len(steering)} given")


def write_summary(folder: Path, certificate: Certificate) -> Path:
    """summary.md in the certificate's folder; its path. Errors: EdgeSteerError where it cannot be written."""
    return write_text(folder / SUMMARY, summary(certificate))


def summary(certificate: Certificate) -> str:
    """A table of the files, and a sentence for each figure that does not pass."""
    reference, texts = certificate.reference, certificate.texts
    lines = [
        f"# Parity of {reference.name}, steered",
        "",
        f"Reference: {reference.name} in PyTorch, {reference.dtype}, {reference.origin}. "
        f"KL(reference \\|\\| file) in nats a token, on {texts.unsteered} unsteered and "
        f"{texts.steered} steered texts of the reference. Verdict: **{certificate.verdict}**.",
        "",
        "| file | KL unsteered | KL steered | same top-1, steered | effect: cosine, length | verdict |",
        "|---|---|---|---|---|---|",
        *map(_row, certificate.files),
    ]
    for entry in certificate.files:
        for finding in entry.report.findings:
            if finding.verdict != "pass":
                lines += ["", f"{entry.quant}: {finding}."]
    return "\n".join(lines) + "\n"


def _row(entry: FileEntry) -> str:
    report = entry.report
    steered = f"{report.steered.kl['mean']:.2g} | {report.steered.top1:.1%}" if report.steered else "|"
    effect = f"{report.effect.cosine:.4f}, {report.effect.norm:.3f}" if report.effect else ""
    return f"| {entry.quant} | {report.unsteered.kl['mean']:.2g} | {steered} | {effect} | {entry.verdict} |"
