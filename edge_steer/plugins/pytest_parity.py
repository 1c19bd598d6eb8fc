"""A pytest fixture for projects that ship a steered GGUF: `edge_steer_parity` fails where it is not its reference.

    def test_parity(edge_steer_parity):
        edge_steer_parity("model-Q4_K_M.gguf", "vector.gguf", reference="owner/model", strength=0.3)

Loaded by pytest wherever edge-steer is installed, so nothing heavy is imported before the fixture is called.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edge_steer.parity.compare import Report


PROBLEMS = 16
MAX_TOKENS = 128


@pytest.fixture
def edge_steer_parity() -> "Callable[..., Report]":
    """Compares a steered GGUF with its reference; see `check`."""
    return check


def check(
    model: str | Path,
    vector: str | Path,
    *,
    reference: str | Path,
    strength: float = 1.0,
    layers: Sequence[int] | None = None,
    phase: Any = "all",
    prompts: Sequence[str] | None = None,
    texts: str | Path | None = None,
    revision: str | None = None,
    reference_vector: str | Path | None = None,
    tolerances: dict[str, float] | None = None,
    **engine: Any,
) -> "Report":
    """Fail the test with what is out of tolerance, or too little data to tell; else give the report.

    prompts: compared on the reference's greedy answers to them; None is PROBLEMS generated word problems. texts: a file
    to compare on instead. reference_vector: what steers the reference, if not `vector`. tolerances: in place of those
    of the file's type, as {"kl": 0.05}. engine: how the file is run, as kv_type="q8_0". Errors: EdgeSteerError.
    """
    __tracebackhide__ = True
    from edge_steer.core.steering import Steering
    from edge_steer.llama.engine import Engine
    from edge_steer.models import describe, quantize
    from edge_steer.parity.baseline import Live
    from edge_steer.parity.compare import EXACT, against
    from edge_steer.parity.texts import read_texts
    from edge_steer.parity.tolerances import tolerance_of
    from edge_steer.reference.model import Reference
    from edge_steer.vectors.read import read

    path = quantize.gguf_for(model)
    quant = describe.quant_of(path)
    chosen = None if layers is None else tuple(layers)
    steering, ours = (
        (Steering(read(Path(file)).vector, strength, chosen, phase),) for file in (vector, reference_vector or vector)
    )
    torch = Reference.load(reference, revision=revision, threads=engine.get("threads"))
    unsteered = read_texts(Path(texts), torch) if texts else _answers(torch, prompts, ())
    steered = unsteered if texts else _answers(torch, prompts, ours)
    exact = {"kv_type": "f32", "flash_attention": "off"} if quant == EXACT else {}
    from edge_steer.core.backend import EngineOptions

    with Engine.load(path, EngineOptions(**{**engine, **exact})) as loaded:
        report = against(
            Live(torch, unsteered, steered, ours), loaded, steering, quant, tolerance_of(quant, tolerances)
        )
    if report.verdict != "pass":
        pytest.fail(_told(path, report), pytrace=False)
    return report


def _answers(reference: Any, prompts: Sequence[str] | None, steering: Sequence[Any]) -> list[Any]:
    """The reference's greedy answers."""
    from edge_steer.core.backend import Request
    from edge_steer.parity.texts import Text
    from edge_steer.tasks.task import word_problems

    asked = prompts or [sample.question for sample in word_problems("test", PROBLEMS)]
    ids = [reference.chat([{"role": "user", "content": prompt}]) for prompt in asked]
    found = reference.generate([Request(tokens, MAX_TOKENS, tuple(steering)) for tokens in ids])
    return [Text(tokens + answer.tokens, len(tokens)) for tokens, answer in zip(ids, found, strict=True)]


def _told(path: Path, report: "Report") -> str:
    lines = [f"{path.name} ({report.quant}) against its reference, steered: {report.verdict}"]
    for found in report.findings:
        if found.verdict != "pass":
            sign = "at most" if found.at_most else "at least"
            ends = f" ({found.interval[0]:.3g}..{found.interval[1]:.3g})" if found.interval else ""
            lines.append(
                f"  {found.name} is {found.value:.3g}{ends}; {sign} {found.tolerance:g} allowed: {found.verdict}"
            )
    return "\n".join(lines)
