"""A pytest fixture for projects that ship a steered GGUF: `edge_steer_parity` fails where it is not its reference.

    def test_parity(edge_steer_parity):
        edge_steer_parity("model-Q4_K_M.gguf", "vector.gguf", reference="owner/model", strength=0.3)

Loaded by pytest wherever edge-steer is installed, so nothing heavy is imported before the fixture is called.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edge_steer.core.backend import Backend
    from edge_steer.core.steering import Steering
    from edge_steer.core.vector import Phase
    from edge_steer.parity.baseline import LiveReference
    from edge_steer.parity.compare import Report
    from edge_steer.parity.texts import TokenisedText

PROBLEMS = 16
MAX_TOKENS = 128


@pytest.fixture
def edge_steer_parity() -> "Callable[..., Report]":
    """Compares a steered GGUF with its reference; see `check_steered_file`."""
    return check_steered_file


def check_steered_file(
    model: str | Path,
    vector: str | Path,
    *,
    reference: str | Path,
    strength: float | None = None,
    layers: Sequence[int] | None = None,
    phase: "Phase | None" = None,
    prompts: Sequence[str] | None = None,
    texts: str | Path | None = None,
    revision: str | None = None,
    reference_vector: str | Path | None = None,
    tolerances: Mapping[str, float] | None = None,
    **engine: Any,
) -> "Report":
    """Fail the test with what is out of tolerance, or too little data to tell; else give the report.

    strength, layers, phase: None is what the vector's file says. prompts: compared on the reference's greedy answers to
    them; None is PROBLEMS generated word problems. texts: a file to compare on instead. reference_vector: what steers
    the reference, if not `vector`. tolerances: in place of those of the file's type, as {"kl": 0.05}. engine: fields of
    EngineOptions, as kv_type="q8_0". Errors: EdgeSteerError.
    """
    __tracebackhide__ = True
    from edge_steer.core.backend import EngineOptions
    from edge_steer.models.file import ModelFile
    from edge_steer.models.load import load
    from edge_steer.models.quantize import gguf_for
    from edge_steer.parity.compare import compare_backend
    from edge_steer.parity.mechanism import options_for
    from edge_steer.parity.tolerances import tolerance_of
    from edge_steer.vectors.steer import steering_of_file

    options = EngineOptions(**engine)
    file = ModelFile(gguf_for(model))
    steering, theirs = (
        (steering_of_file(source, strength, layers, phase),) for source in (vector, reference_vector or vector)
    )
    tolerance = tolerance_of(file.quant, tolerances)
    with (
        load(reference, runtime="torch", revision=revision, options=options) as running,
        load(file.path, options=options_for(file.quant, options)) as loaded,
    ):
        baseline = _baseline(running, theirs, prompts, texts)
        report = compare_backend(baseline, loaded, steering, file.quant, tolerance)
    if report.verdict != "pass":
        pytest.fail(_failure(file.path, report), pytrace=False)
    return report


def _baseline(
    reference: "Backend", steering: "tuple[Steering, ...]", prompts: Sequence[str] | None, texts: str | Path | None
) -> "LiveReference":
    """The reference on the texts of a file, or on its own answers, unsteered and steered."""
    from edge_steer.parity.baseline import LiveReference
    from edge_steer.parity.texts import read_texts

    if texts:
        both = read_texts(texts, reference)
        return LiveReference(reference, both, both, steering)
    unsteered, steered = (_answers(reference, prompts, one) for one in ((), steering))
    return LiveReference(reference, unsteered, steered, steering)


def _answers(
    reference: "Backend", prompts: Sequence[str] | None, steering: "tuple[Steering, ...]"
) -> "list[TokenisedText]":
    """The reference's greedy answers."""
    from edge_steer.core.backend import Request
    from edge_steer.parity.texts import TokenisedText
    from edge_steer.tasks.load import load_task

    questions = prompts or [sample.question for sample in load_task("wordproblems", limit=PROBLEMS).samples]
    tokens = [reference.chat([{"role": "user", "content": question}]) for question in questions]
    completions = reference.generate([Request(prompt, MAX_TOKENS, steering) for prompt in tokens])
    return [
        TokenisedText(prompt + completion.tokens, len(prompt))
        for prompt, completion in zip(tokens, completions, strict=True)
    ]


def _failure(path: Path, report: "Report") -> str:
    lines = [f"{path.name} ({report.quant}) against its reference, steered: {report.verdict}"]
    return "\n".join([*lines, *(f"  {finding}" for finding in report.findings if finding.verdict != "pass")])
