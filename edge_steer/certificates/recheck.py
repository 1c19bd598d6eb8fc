"""A certificate run again: which of its figures still hold.

Takes a certificate, and files that lie elsewhere than it says; gives figure by figure whether they agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edge_steer.certificates.certificate import (
    Certificate,
    FileEntry,
    check_steering,
    read_certificate,
    read_certified_texts,
)
from edge_steer.certificates.files import path_at
from edge_steer.certificates.reference_side import opened_reference
from edge_steer.core.backend import EngineOptions, Lora
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steering
from edge_steer.models.load import load
from edge_steer.models.quantize import gguf_for
from edge_steer.parity.baseline import LiveReference, SteeringRecord, records_of
from edge_steer.parity.compare import Report, compare_backend
from edge_steer.parity.findings import largest_in_roundings
from edge_steer.parity.saved import SavedReference, save
from edge_steer.parity.tolerances import ROUNDINGS
from edge_steer.storage.provenance import RunningModel
from edge_steer.vectors.read import read

# What a figure may differ by: relative and absolute. The same machine gives the same figures; another processor rounds
# otherwise.
RECHECK_TOLERANCES = {
    "unsteered mean KL": (0.2, 1e-6),
    "steered mean KL": (0.2, 1e-6),
    "unsteered same first choice": (0.0, 0.005),
    "steered same first choice": (0.0, 0.005),
    "effect cosine": (0.0, 0.003),
    "effect length": (0.0, 0.005),
}
IN_ROUNDINGS = "mechanism max|delta logit| in roundings"
DEFAULTS = EngineOptions()


@dataclass(frozen=True)
class RecheckedFigure:
    """A figure of a certificate and what it is now; recorded is None where it has none, being of an earlier time.

    holds: whether that is the same, see RECHECK_TOLERANCES; of rounding, whether it is within its limit.
    """

    file: str
    figure: str
    recorded: float | None
    measured: float
    holds: bool


def check_again(
    certificate: str | Path,
    files: Sequence[str | Path] = (),
    *,
    reference: str | Path | RunningModel | None = None,
    vectors: Sequence[str | Path] = (),
    reference_vectors: Sequence[str | Path] = (),
    revision: str | None = None,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> list[RecheckedFigure]:
    """Compare again what a certificate compared, on its texts, under its conditions.

    certificate: its certificate.json. files, reference, vectors, reference_vectors: where they lie, if not where the
    certificate says. revision: of the reference. options: its `threads` and `lora` alone are used.
    Errors: EdgeSteerError for files, vectors, texts, an adapter or a reference that the certificate is not for.
    """
    path = Path(certificate)
    recorded, folder = read_certificate(path), path.parent
    steering = _steering(vectors, recorded.vectors, recorded.steering, folder)
    theirs = steering
    if recorded.reference_vectors:
        theirs = _steering(reference_vectors, recorded.reference_vectors, recorded.reference_steering, folder)
    entries = _located(recorded, files, folder, progress)
    unsteered, steered = read_certified_texts(folder, recorded.texts)
    named = reference if reference is not None else path_at(recorded.reference.source, folder)
    figures: list[RecheckedFigure] = []
    with opened_reference(named, revision, options, progress) as model, TemporaryDirectory() as scratch:
        _check_reference(recorded, model)
        saved = Path(scratch) / "reference"
        save(saved, LiveReference(model, unsteered, steered, theirs), {}, {}, progress)
        baseline = SavedReference(saved, model)
        for file, entry in entries:
            _check_adapter(entry, options.lora)
            conditions = replace(entry.conditions.options, threads=options.threads, lora=options.lora)
            with load(file, options=conditions, progress=progress) as engine:
                report = compare_backend(
                    baseline, engine, steering, entry.quant, entry.report.tolerance, progress=progress
                )
            figures += recheck(entry, report)
    return figures


def recheck(entry: FileEntry, report: Report) -> list[RecheckedFigure]:
    """The figures of a file's entry against those of a new report."""
    recorded, measured = _figures(entry.report), _figures(report)
    return [
        RecheckedFigure(entry.file, name, recorded.get(name), value, _holds(name, recorded.get(name), value))
        for name, value in measured.items()
        if name in recorded or name == IN_ROUNDINGS
    ]


def _steering(
    paths: Sequence[str | Path], recorded_paths: Sequence[str], recorded: Sequence[SteeringRecord], folder: Path
) -> tuple[Steering, ...]:
    """The vectors, steering as the certificate has it. Errors: EdgeSteerError for others."""
    sources = list(paths) or [path_at(source, folder) for source in recorded_paths]
    if len(sources) != len(recorded):
        raise EdgeSteerError(f"the certificate is for {len(recorded)} vectors; {len(sources)} given")
    steering = tuple(
        Steering(read(source).vector, record.strength, record.layers, record.phase)
        for source, record in zip(sources, recorded, strict=True)
    )
    check_steering(recorded, records_of(steering))
    return steering


def _located(
    certificate: Certificate, files: Sequence[str | Path], folder: Path, progress: Progress
) -> list[tuple[Path, FileEntry]]:
    """The files to compare with what the certificate says of them; without `files` all of them, made if need be."""
    if files:
        paths = [gguf_for(file, progress=progress) for file in files]
    else:
        paths = [gguf_for(path_at(e.source, folder), e.quant, progress=progress) for e in certificate.files]
    return [(path, certificate.entry_of(path)) for path in paths]


def _check_reference(certificate: Certificate, model: RunningModel) -> None:
    recorded = certificate.reference
    if model.model.revision != recorded.revision:
        given = replace(recorded, revision=model.model.revision)
        raise EdgeSteerError(
            f"the certificate is for {recorded.name}, {recorded.origin}, not {given.origin}; "
            "name its reference, or its revision"
        )


def _check_adapter(entry: FileEntry, lora: Lora | None) -> None:
    """Errors: EdgeSteerError for another adapter than the file ran with, or another scale."""
    recorded = entry.conditions.options.lora
    if lora != (recorded and replace(recorded, path=lora.path if lora else recorded.path)):
        wanted = f"adapter {recorded.digest[:12]} at scale {recorded.scale:g}" if recorded else "no adapter"
        raise EdgeSteerError(f"the certificate is for {entry.file} with {wanted}; name just that")


def _figures(report: Report) -> dict[str, float]:
    figures = {}
    for name, divergence in (("unsteered", report.unsteered), ("steered", report.steered)):
        if divergence:
            figures[f"{name} mean KL"] = divergence.kl["mean"]
            figures[f"{name} same first choice"] = divergence.top1
    if (largest := largest_in_roundings(report.mechanism)) is not None:
        figures[IN_ROUNDINGS] = largest
    if report.effect:
        figures |= {"effect cosine": report.effect.cosine, "effect length": report.effect.norm}
    return figures


def _holds(name: str, recorded: float | None, measured: float) -> bool:
    if name == IN_ROUNDINGS:
        return measured <= ROUNDINGS
    assert recorded is not None
    relative, absolute = RECHECK_TOLERANCES[name]
    return abs(measured - recorded) <= relative * abs(recorded) + absolute
