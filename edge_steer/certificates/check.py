"""One model against its reference, nothing written: a report with its verdict.

Takes running models or their names, texts and a steering. make.py makes a certificate of the same figures.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from edge_steer.certificates.files import certified_file
from edge_steer.certificates.reference_side import opened_reference
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steer, steerings
from edge_steer.models.load import load
from edge_steer.parity.baseline import LiveReference
from edge_steer.parity.compare import Report, compare_backend
from edge_steer.parity.mechanism import EXACT, options_for
from edge_steer.parity.texts import Texts, tokenise_texts
from edge_steer.parity.tolerances import tolerance_of
from edge_steer.storage.provenance import RunningModel

DEFAULTS = EngineOptions()


def check_parity(
    model: str | Path | RunningModel,
    reference: str | Path | RunningModel,
    texts: Texts,
    steer: Steer = None,
    *,
    reference_steer: Steer = None,
    quant: str | None = None,
    revision: str | None = None,
    tolerances: Mapping[str, float] | None = None,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> Report:
    """Is a GGUF model, steered, what the same model is in PyTorch? `.verdict` of the report says so.

    model: a running model or its name, of which `quant` is made and which runs as `options` say. reference: a running
    model or its name at `revision`. texts: pairs, plain texts, token ids, or a file of pairs or texts. steer: what
    steers the model, and the reference too unless `reference_steer` says otherwise. tolerances: field of Tolerance ->
    a value in place of that of the type. Errors: EdgeSteerError for what cannot be compared, before anything is
    computed.
    """
    steering = steerings(steer)
    theirs = steering if reference_steer is None else steerings(reference_steer)
    with ExitStack() as stack:
        if isinstance(model, str | Path):
            file = certified_file(model, quant, None, options, progress)
            quant = file.quant
            tolerance = tolerance_of(quant, tolerances)
            model = stack.enter_context(load(file.file.path, options=file.options, progress=progress))
        else:
            quant = quant or _quant_of(model)
            tolerance = tolerance_of(quant, tolerances)
        running = stack.enter_context(opened_reference(reference, revision, options, progress))
        tokenised = tokenise_texts(texts, running)
        baseline = LiveReference(running, tokenised, tokenised if theirs else (), theirs)
        return compare_backend(baseline, model, steering, quant, tolerance, progress=progress)


def _quant_of(model: RunningModel) -> str:
    """The type of a running model. Errors: EdgeSteerError for an exact file that does not run exactly."""
    provenance = model.provenance
    quant = str(provenance.model.get("quant", EXACT))
    running = EngineOptions(**{name: provenance.backend[name] for name in vars(DEFAULTS) if name in provenance.backend})
    if quant == EXACT and options_for(quant, running) != running:
        raise EdgeSteerError(
            f"an {EXACT} file is compared exactly; load it with EngineOptions(kv_type='f32', flash_attention='off'), "
            "or name the file"
        )
    return quant
