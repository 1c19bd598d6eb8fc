"""Making a certificate: each GGUF file held against the reference.

Takes files, a reference, a steering and texts or a task; leaves in a folder certificate.json, the texts that were
compared on, the rows of both sides, a Markdown summary and report.html. What a stopped run has measured lies there and
is not measured again. docs/reading-a-certificate.md describes the files.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from edge_steer.certificates.behaviour import DOSES, Behaviour, Dose, accuracy_findings, compare_doses
from edge_steer.certificates.certificate import (
    ROWS,
    Certificate,
    Conditions,
    FileEntry,
    TaskEntry,
    write_summary,
    write_texts,
)
from edge_steer.certificates.files import (
    CertifiedFile,
    CertifiedSteer,
    SteeringFile,
    certified_files,
    check_files,
    path_from,
    steering_files,
    steerings_of,
)
from edge_steer.certificates.page import write_page
from edge_steer.certificates.reference_side import (
    TEXTS_COMPARED,
    Basis,
    ReferenceSide,
    opened_reference,
    reference_side,
    saved_reference_side,
)
from edge_steer.certificates.reports import Comparison
from edge_steer.core.backend import Backend, EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import described
from edge_steer.evaluation.evaluate import task_of
from edge_steer.models.load import load
from edge_steer.models.machine import repacks_weights, system_info
from edge_steer.parity.baseline import records_of
from edge_steer.parity.texts import Texts
from edge_steer.parity.tolerances import Tolerance, tolerance_of
from edge_steer.storage.files import cache_folder
from edge_steer.storage.provenance import RunningModel, key, versions
from edge_steer.tasks.task import Task

DEFAULTS = EngineOptions()


def certify(
    files: str | Path | Sequence[str | Path],
    reference: str | Path | RunningModel | None = None,
    *,
    steer: CertifiedSteer = None,
    texts: Texts | None = None,
    task: str | Path | Task | None = None,
    doses: Sequence[float] = DOSES,
    most_texts: int = TEXTS_COMPARED,
    folder: str | Path | None = None,
    saved_reference: str | Path | None = None,
    reference_steer: CertifiedSteer = None,
    quants: Sequence[str] = (),
    revision: str | None = None,
    tolerances: Mapping[str, float] | None = None,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> Certificate:
    """Hold GGUF files against their reference, steered, and certify what they do.

    files: MODELs, or one of which `quants` are made. reference: the same model's weights by name, or a running model;
    `revision` of its name. saved_reference: a file of `save_reference` in place of it, or beside it, for the mechanism
    of an exact file. steer: what steers the files, and the reference too unless `reference_steer` says otherwise; a
    vector that is not given as a SteeringFile is written into the folder. texts: pairs, plain texts, or a file of
    either to compare on. task: in place of texts, problems that both sides answer at `doses` (factors on the strength);
    they are compared on the reference's answers. most_texts: how many texts at most. folder: where the certificate is
    written; None writes none, and keeps what is measured in the cache until all is. tolerances: field of Tolerance -> a
    value in place of that of the type. options: how files run; an exact one runs exactly. Errors: EdgeSteerError for
    what cannot be compared, before anything is computed, or for rows in the folder that were made otherwise.
    """
    if reference is None and saved_reference is None:
        raise EdgeSteerError("a certificate needs a reference: its name, a running model, or a saved one")
    if saved_reference and texts is not None:
        raise EdgeSteerError("a saved reference holds its own texts; leave out the texts")
    steered = bool(steer)
    problems = None if task is None else task_of(task)
    basis = None if saved_reference else Basis.of(texts, problems, doses, most_texts, steered=steered)
    certified = certified_files(files, quants, revision, options, progress)
    check_files(certified, steered=steered)
    allowed = {file.quant: tolerance_of(file.quant, tolerances) for file in certified}
    with ExitStack() as stack:
        place = Path(folder or _unnamed_folder(certified, steer, reference))
        place.mkdir(parents=True, exist_ok=True)
        vectors = steering_files(steer, place)
        theirs = None if reference_steer is None else steering_files(reference_steer, place, "reference-vector")
        model = None
        if reference is not None:
            model = stack.enter_context(opened_reference(reference, revision, options, progress))
        if saved_reference:
            side = saved_reference_side(saved_reference, problems, model)
        else:
            assert model is not None
            assert basis is not None
            named = str(reference) if isinstance(reference, str | Path) else None
            steering = tuple(one.steering for one in (vectors if theirs is None else theirs))
            side = reference_side(model, basis, steering, place, source=named, progress=progress)
        certifier = _Certifier(place, side, problems, vectors, progress)
        entries = tuple(certifier.entry(file, allowed[file.quant]) for file in certified)
        certificate = certifier.certificate(entries, theirs, tolerances or {})
        if folder:
            certificate.write(place)
            write_summary(place, certificate)
            write_page(place, certificate, side.answers, problems.samples if problems else ())
        certifier.comparison.finish()
    if not folder:
        shutil.rmtree(place)
    return certificate


def _unnamed_folder(
    files: Sequence[CertifiedFile], steer: CertifiedSteer, reference: str | Path | RunningModel | None
) -> Path:
    """Where a certificate without a folder keeps what it measures until it is done; a stopped run finds it again."""
    name = str(reference) if isinstance(reference, str | Path) else reference and str(reference.model.revision)
    settings = [[file.file.digest for file in files], described(steerings_of(steer)), name]
    return cache_folder() / "parity" / key(settings)


class _Certifier:
    """One reference, one steering, one folder: gives the entry of each file, then the certificate."""

    def __init__(
        self,
        folder: Path,
        side: ReferenceSide,
        task: Task | None,
        vectors: tuple[SteeringFile, ...],
        progress: Progress,
    ) -> None:
        self._folder, self._side, self._task, self._vectors = folder, side, task, vectors
        self._progress = progress
        self._steering = tuple(one.steering for one in vectors)
        self._texts = write_texts(folder, side.baseline)
        self.comparison = Comparison(folder, side, self._texts, self._steering, progress)

    def entry(self, file: CertifiedFile, tolerance: Tolerance) -> FileEntry:
        """One file, compared and, where a task was asked, answering it."""
        conditions = Conditions(file.options, repacks_weights(file.file))
        rows = f"{ROWS}/{file.quant}.jsonl" if self._task else None
        with load(file.file.path, options=file.options, progress=self._progress) as engine:
            report = self.comparison.report(file, conditions, engine, tolerance)
            doses = self._behaviour(engine, file, conditions, self._folder / rows) if rows else ()
        findings = (*report.findings, *accuracy_findings(doses, tolerance.accuracy))
        return FileEntry(
            source=path_from(file.source, self._folder),
            file=file.file.path.name,
            digest=file.file.digest,
            bytes=file.file.path.stat().st_size,
            conditions=conditions,
            rows=rows,
            report=replace(report, findings=findings),
            behaviour=doses,
        )

    def certificate(
        self, entries: tuple[FileEntry, ...], theirs: tuple[SteeringFile, ...] | None, changes: Mapping[str, float]
    ) -> Certificate:
        """theirs: what steered the reference, if it is not what steered the files."""
        task = self._task
        return Certificate(
            reference=self._side.source,
            vectors=self._paths(self._vectors),
            reference_vectors=None if theirs is None else self._paths(theirs),
            versions={**versions("edge-steer"), **system_info()},
            reference_steering=tuple(self._side.baseline.steering),
            steering=records_of(self._steering),
            texts=self._texts,
            task=TypeAdapter(TaskEntry).validate_python(task.described()) if task else None,
            doses=tuple(sorted(self._side.answers)),
            changes=changes,
            files=entries,
        )

    def _paths(self, vectors: tuple[SteeringFile, ...]) -> tuple[str, ...]:
        return tuple(path_from(one.path, self._folder) for one in vectors)

    def _behaviour(self, engine: Backend, file: CertifiedFile, conditions: Conditions, rows: Path) -> tuple[Dose, ...]:
        assert self._task is not None
        behaviour = Behaviour(self._task, tuple(sorted(self._side.answers)), self._steering)
        header = behaviour.header(file.file.digest, conditions.to_json())
        answers = behaviour.answers(engine, rows, header, self._progress)
        return compare_doses(self._side.answers, answers, lambda text: engine.encode(text, start=False))
