"""Reports of files, kept while a certificate is made, so that a stopped run goes on.

Takes a side of the reference and files, gives reports. What the reference says is computed once; it lies in a file
while others are compared with it. What is measured of a file is kept text by text and case by case until its report
is whole.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from edge_steer.certificates.certificate import Conditions, TextsFile
from edge_steer.certificates.files import CertifiedFile
from edge_steer.certificates.reference_side import ReferenceSide
from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering
from edge_steer.models.machine import system_info
from edge_steer.parity.baseline import Baseline, records_of
from edge_steer.parity.compare import Report, compare_backend
from edge_steer.parity.mechanism import EXACT, MechanismRow
from edge_steer.parity.saved import SavedReference
from edge_steer.parity.tolerances import Tolerance
from edge_steer.storage.files import write_json
from edge_steer.storage.provenance import key
from edge_steer.storage.records import Store

REPORTS = "parity"


@dataclass(frozen=True)
class Comparison:
    """Everything that a file is compared with. folder: the certificate's; its reports lie in folder/parity."""

    folder: Path
    side: ReferenceSide
    texts: TextsFile
    steering: tuple[Steering, ...]
    progress: Progress

    def report(self, file: CertifiedFile, conditions: Conditions, engine: Backend, tolerance: Tolerance) -> Report:
        """A file's report: that of an earlier run with the same key, or a new one. Errors: as `compare_backend`."""
        path = self.folder / REPORTS / f"{file.quant}.json"
        settings = self._key(file, conditions)
        if report := _read(path, settings):
            self.progress.note(f"{file.quant}: compared already")
            return report.judged(tolerance)
        unfinished = path.with_name(f"{file.quant}-{settings[:12]}.jsonl")
        with Store.open(unfinished, {"key": settings}) as store:
            report = compare_backend(
                self._baseline, engine, self.steering, file.quant, tolerance, store=store, progress=self.progress
            )
        write_json(path, {"key": settings, "report": asdict(report)})
        unfinished.unlink()
        return report

    def finish(self) -> None:
        """Remove what only a run in progress needs."""
        self._reference.unlink(missing_ok=True)

    @property
    def _reference(self) -> Path:
        return self.folder / REPORTS / "reference"

    @cached_property
    def _baseline(self) -> Baseline:
        """The reference's side from a file: one that an earlier run left, or a new one."""
        if isinstance(self.side.baseline, SavedReference):
            return self.side.baseline
        if self._reference.exists():
            with suppress(EdgeSteerError):
                saved = SavedReference(self._reference, self.side.baseline.exact_backend)
                if self._is_saved_in(saved):
                    return saved
        self._reference.parent.mkdir(exist_ok=True)
        return self.side.save(self._reference, self.progress).baseline

    def _is_saved_in(self, saved: SavedReference) -> bool:
        ours = self.side.baseline
        return (
            json.dumps(saved.source) == json.dumps(asdict(self.side.source))
            and saved.steering == tuple(ours.steering)
            and saved.unsteered == list(ours.unsteered)
            and saved.steered == list(ours.steered)
        )

    @property
    def _mechanism(self) -> object:
        """What is measured of the mechanism of an exact file."""
        return [one.name for one in fields(MechanismRow)] if self.side.baseline.exact_backend else False

    def _key(self, file: CertifiedFile, conditions: Conditions) -> str:
        """Of all that a report depends on, but the tolerance."""
        return key(
            {
                "file": file.file.digest,
                "conditions": conditions.to_json(),
                "machine": system_info(),
                "steering": [asdict(record) for record in records_of(self.steering)],
                "reference": asdict(self.side.source),
                "reference steering": [asdict(record) for record in self.side.baseline.steering],
                "texts": self.texts.digest,
                "mechanism": self._mechanism if file.quant == EXACT else False,
            },
            length=32,
        )


def _read(path: Path, settings: str) -> Report | None:
    """The report of a run with these settings; None where there is none, or it is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(path.read_text("utf-8"))
        if record["key"] == settings:
            return TypeAdapter(Report).validate_python(record["report"])
    return None
