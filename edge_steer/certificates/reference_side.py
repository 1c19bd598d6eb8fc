"""The reference's side of a certificate: where it comes from, its answers to a task, what it is compared on.

Takes a running reference, or a file in which one was saved; gives a ReferenceSide. It compares nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter, ValidationError

from edge_steer.certificates.behaviour import DOSES, Behaviour, RowsByDose, answer_texts
from edge_steer.certificates.certificate import ROWS, ReferenceSource
from edge_steer.certificates.files import path_from
from edge_steer.core.backend import Backend, EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steer, Steering, steerings
from edge_steer.evaluation.evaluate import task_of
from edge_steer.models.load import load
from edge_steer.parity.baseline import Baseline, LiveReference
from edge_steer.parity.saved import SavedReference, save
from edge_steer.parity.texts import Texts, tokenise_texts
from edge_steer.storage.provenance import RunningModel, versions
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Task

TEXTS_COMPARED = 16
DEFAULTS = EngineOptions()


@dataclass(frozen=True)
class Basis:
    """What both sides are compared on: texts, or the reference's own answers to a task at several doses.

    texts: as `tokenise_texts` takes them. doses: factors on the strength. most_texts: how many texts at most.
    """

    texts: Texts | None
    task: Task | None
    doses: tuple[float, ...]
    most_texts: int

    @classmethod
    def of(
        cls,
        texts: Texts | None,
        task: str | Path | Task | None,
        doses: Sequence[float],
        most_texts: int,
        *,
        steered: bool,
    ) -> "Basis":
        """From what `certify` takes. Unsteered there is but one dose.

        Errors: EdgeSteerError for texts and a task, or none of them, or for doses without 0 or 1.
        """
        if (texts is None) == (task is None):
            raise EdgeSteerError("compare on texts or on a task: one of the two")
        if not {0.0, 1.0} <= {*doses}:
            raise EdgeSteerError("0 and 1 must be among the doses; their texts are compared on")
        wanted = tuple(sorted({*map(float, doses)})) if steered else (0.0,)
        return cls(texts, None if task is None else task_of(task), wanted, most_texts)


@dataclass(frozen=True)
class ReferenceSide:
    """What the reference is compared by, its answers by dose, and where it comes from."""

    baseline: Baseline
    answers: RowsByDose
    source: ReferenceSource

    def save(self, path: str | Path, progress: Progress = SILENT) -> "ReferenceSide":
        """Write it as a saved reference; the same side, read from there. Errors: EdgeSteerError."""
        records = {f"{dose:g}": [row.record() for row in rows] for dose, rows in self.answers.items()}
        save(path, self.baseline, asdict(self.source), records, progress)
        return replace(self, baseline=SavedReference(path, self.baseline.exact_backend))


@contextmanager
def opened_reference(
    reference: str | Path | RunningModel, revision: str | None, options: EngineOptions, progress: Progress
) -> Iterator[RunningModel]:
    """A reference by its name, running while the block does; a running one is left running."""
    if not isinstance(reference, str | Path):
        yield reference
        return
    with load(reference, runtime="torch", revision=revision, options=options, progress=progress) as model:
        yield model


def reference_side(
    reference: RunningModel,
    basis: Basis,
    steering: Sequence[Steering],
    folder: Path,
    *,
    source: str | None = None,
    progress: Progress = SILENT,
) -> ReferenceSide:
    """The side of a running reference. Its answers to a task lie in folder/rows; a stopped run goes on.

    source: the name it was loaded by. Errors: EdgeSteerError for no texts, or where llama.cpp computes otherwise than
    the model.
    """
    reference.check_comparable(1)
    model, provenance, task = reference.model, reference.provenance, basis.task
    facts = ReferenceSource(
        name=model.name,
        source=path_from(source or model.name, folder),
        revision=model.revision,
        dtype=str(provenance.backend.get("dtype", "float32")),
        versions={**provenance.versions, **versions("numpy")},
        task=task.digest if task else None,
        settings=task.settings if task else None,
    )
    if task is None:
        texts = tokenise_texts(basis.texts or (), reference)[: basis.most_texts]
        return ReferenceSide(LiveReference(reference, texts, texts if steering else (), steering), {}, facts)
    conditions = {"backend": "torch", "dtype": facts.dtype, "threads": provenance.backend.get("threads")}
    behaviour = Behaviour(task, basis.doses, tuple(steering))
    path, header = folder / ROWS / "reference.jsonl", behaviour.header(str(model.revision), conditions)
    answers = behaviour.answers(reference, path, header, progress)
    texts, steered = (answer_texts(reference, task, answers.get(dose, ()))[: basis.most_texts] for dose in (0.0, 1.0))
    return ReferenceSide(LiveReference(reference, texts, steered, steering), answers, facts)


def saved_reference_side(path: str | Path, task: Task | None, exact_backend: Backend | None = None) -> ReferenceSide:
    """The side that was saved in a file. exact_backend: the running reference, for the mechanism.

    Errors: EdgeSteerError if it holds no answers to the task's problems.
    """
    saved = SavedReference(path, exact_backend)
    try:
        source = TypeAdapter(ReferenceSource).validate_python(saved.source)
    except ValidationError as error:
        raise EdgeSteerError(f"{path} is no reference saved for a certificate: {error.errors()[0]['msg']}") from None
    if task and source.task != task.digest:
        raise EdgeSteerError(f"{path} holds no answers to these problems; save it with the same task")
    if task and source.settings not in (None, task.settings):
        raise EdgeSteerError(f"{path} was asked these problems otherwise; ask them in the same way, or save it again")
    answers = {float(dose): [Row.of(record) for record in rows] for dose, rows in saved.answers.items()}
    return ReferenceSide(saved, answers if task else {}, source)


def save_reference(
    path: str | Path,
    reference: str | Path | RunningModel,
    *,
    steer: Steer = None,
    texts: Texts | None = None,
    task: str | Path | Task | None = None,
    doses: Sequence[float] = DOSES,
    most_texts: int = TEXTS_COMPARED,
    folder: str | Path | None = None,
    revision: str | None = None,
    source: str | None = None,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> None:
    """Write what a reference says into a file, so that `certify` needs no PyTorch; the arguments are those of certify.

    folder: where the answers to a task lie, so that a stopped run goes on. source: the name of a running reference, for
    the certificate. Errors: EdgeSteerError.
    """
    steering = steerings(steer)
    basis = Basis.of(texts, task, doses, most_texts, steered=bool(steering))
    with ExitStack() as stack:
        place = Path(folder or stack.enter_context(TemporaryDirectory()))
        model = stack.enter_context(opened_reference(reference, revision, options, progress))
        source = str(reference) if isinstance(reference, str | Path) else source
        reference_side(model, basis, steering, place, source=source, progress=progress).save(path, progress)
