"""Steer small language models on a laptop: pairs to a vector, a vector to a steered answer, and proof that it holds.

    import edge_steer as es

    vector = es.extract("Qwen/Qwen2.5-1.5B-Instruct", es.read_pairs("pairs.jsonl"))
    with es.load("Qwen/Qwen2.5-1.5B-Instruct", "Q4_K_M") as model:
        print(model.ask("If 3x + 4 = 19, what is x?", steer=vector.at(17) * 4))

Each name is imported when it is first used, so `import edge_steer` is quick and loads no runtime. A path is a str or a
Path. `steer` is a vector (used as its tuning says), a Steering, several of them, or None. Errors: EdgeSteerError.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_steer.certificates.check import check_parity
    from edge_steer.certificates.make import certify
    from edge_steer.certificates.recheck import check_again
    from edge_steer.core.backend import Completion, EngineOptions, Request
    from edge_steer.core.errors import EdgeSteerError
    from edge_steer.core.progress import Progress
    from edge_steer.core.sampling import Sampling
    from edge_steer.core.steering import Steer, Steering
    from edge_steer.core.vector import SteeringVector
    from edge_steer.evaluation.evaluate import evaluate
    from edge_steer.evaluation.figures import compare, summarise
    from edge_steer.evaluation.sweep import sweep
    from edge_steer.extraction.extract import Normalise
    from edge_steer.lens.reading import Reading
    from edge_steer.models.convert import convert
    from edge_steer.models.load import load
    from edge_steer.models.quantize import quantize
    from edge_steer.pairs.pair import Pair, read_pairs, write_pairs
    from edge_steer.plugins.llama_cpp_python import steer
    from edge_steer.tasks.load import load_task
    from edge_steer.tasks.rows import Row
    from edge_steer.tasks.task import Task
    from edge_steer.training.policy import GradientOptions
    from edge_steer.training.settings import RlooSettings
    from edge_steer.vectors.read import load as load_vector
    from edge_steer.vectors.write import save as save_vector

_PLACES = {
    "Completion": "core.backend",
    "EdgeSteerError": "core.errors",
    "EngineOptions": "core.backend",
    "GradientOptions": "training.policy",
    "Pair": "pairs.pair",
    "Progress": "core.progress",
    "Request": "core.backend",
    "RlooSettings": "training.settings",
    "Row": "tasks.rows",
    "Sampling": "core.sampling",
    "Steering": "core.steering",
    "SteeringVector": "core.vector",
    "Task": "tasks.task",
    "certify": "certificates.make",
    "check_again": "certificates.recheck",
    "check_parity": "certificates.check",
    "compare": "evaluation.figures",
    "convert": "models.convert",
    "evaluate": "evaluation.evaluate",
    "load": "models.load",
    "load_task": "tasks.load",
    "load_vector": "vectors.read:load",
    "quantize": "models.quantize",
    "read_pairs": "pairs.pair",
    "save_vector": "vectors.write:save",
    "steer": "plugins.llama_cpp_python",
    "summarise": "evaluation.figures",
    "sweep": "evaluation.sweep",
    "write_pairs": "pairs.pair",
}
__all__ = [
    "Completion",
    "EdgeSteerError",
    "EngineOptions",
    "GradientOptions",
    "Pair",
    "Progress",
    "Request",
    "RlooSettings",
    "Row",
    "Sampling",
    "Steering",
    "SteeringVector",
    "Task",
    "ask",
    "certify",
    "check_again",
    "check_parity",
    "compare",
    "convert",
    "evaluate",
    "extract",
    "load",
    "load_task",
    "load_vector",
    "logit_lens",
    "quantize",
    "read_pairs",
    "save_vector",
    "steer",
    "summarise",
    "sweep",
    "train",
    "write_pairs",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'edge_steer' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(import_module(f"edge_steer.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def ask(model: Any, question: str, steer: "Steer" = None, **settings: Any) -> "Completion":
    """Answer one question; `str(completion)` is the text.

    model: what `load` takes, or a loaded model, whose `ask` this is. settings: system, max_tokens, sampling, stop,
    on_text. Errors: EdgeSteerError.
    """
    if not isinstance(model, str | Path):
        answer: Completion = model.ask(question, steer, **settings)
        return answer
    from edge_steer.models.load import load

    with load(model) as loaded:
        return loaded.ask(question, steer, **settings)


def logit_lens(
    vector: "SteeringVector | str | Path",
    model: str | Path,
    score: str = "cosine",
    *,
    layers: Sequence[int] | None = None,
    top: int = 50,
) -> "Reading":
    """The tokens that each layer of a vector, or of its file, raises and lowers most, and what random directions reach.

    model: a GGUF, a Hugging Face folder or a hub id, whose unembedding alone is read. score: "cosine" or "norm-gain".
    Errors: EdgeSteerError.
    """
    from edge_steer.lens.reading import read_vector
    from edge_steer.lens.scores import checked_score
    from edge_steer.lens.unembedding import read_unembedding
    from edge_steer.models.sources import find
    from edge_steer.vectors.read import load as load_vector

    read = load_vector(vector) if isinstance(vector, str | Path) else vector
    return read_vector(read, read_unembedding(find(model)), checked_score(score), layers=layers, top=top)


def extract(
    model: Any,
    pairs: "Sequence[Pair] | str | Path",
    *,
    layers: Sequence[int] | None = None,
    pooling: str = "last",
    method: str = "mean_difference",
    normalise: "Normalise" = False,
    progress: "Progress | None" = None,
) -> "SteeringVector":
    """The steering vector of contrastive pairs, or of a file of them (DenseSteer: mean difference, last token).

    model: a Hugging Face folder or hub id (run in PyTorch), a GGUF (run in llama.cpp), or a loaded model. layers: None
    is every block. pooling: which tokens make a state. normalise: scale each direction to norm 1, or
    to that of the states ("residual"), so that strengths compare across layers.
    Errors: EdgeSteerError.
    """
    from edge_steer.core.progress import SILENT
    from edge_steer.extraction.extract import extract as extract_from
    from edge_steer.models.load import load_recorder
    from edge_steer.pairs.pair import read_pairs

    chosen = read_pairs(pairs) if isinstance(pairs, str | Path) else pairs
    progress = progress or SILENT

    def of(recorder: Any) -> "SteeringVector":
        return extract_from(
            recorder, chosen, layers=layers, pooling=pooling, method=method, normalise=normalise, progress=progress
        )

    if not isinstance(model, str | Path):
        return of(model)
    with load_recorder(model, progress=progress) as recorder:
        return of(recorder)


def train(
    model: str | Path,
    task: "str | Path | Task",
    folder: str | Path,
    settings: "RlooSettings | None" = None,
    *,
    gguf: str | Path | None = None,
    quant: str | None = None,
    layers: Sequence[int] | None = None,
    options: "EngineOptions | None" = None,
    gradient: "GradientOptions | None" = None,
    keep_every: int = 25,
    progress: "Progress | None" = None,
) -> "SteeringVector":
    """Train one vector a block by reinforcement learning (Bias-Only Adaptation, RLOO); also vector.safetensors.

    model: whose weights have the gradient in PyTorch: a Hugging Face folder or hub id, or a GGUF, dequantised. gguf:
    the file that answers in llama.cpp; None is `model` itself, quantised to `quant` if that is given. task: of its name
    the training split is taken. folder: log.jsonl, the state from which the same call goes on, the answers of each
    step, and the vector after every `keep_every` steps. layers: None is every block. Errors: EdgeSteerError.
    """
    from edge_steer.core.progress import SILENT
    from edge_steer.models.load import DEFAULTS, load
    from edge_steer.training import policy
    from edge_steer.training.rloo import Trainee, train_vector
    from edge_steer.training.rollouts import training_task
    from edge_steer.training.settings import RlooSettings
    from edge_steer.vectors.write import save

    problems = training_task(task) if isinstance(task, str | Path) else task
    options, progress, folder = options or DEFAULTS, progress or SILENT, Path(folder)

    def keep(step: int, vector: "SteeringVector") -> None:
        if step % keep_every == 0:
            save(vector, folder / f"step-{step:05}.safetensors")

    with (
        load(gguf or model, quant, options=options, progress=progress) as engine,
        load(model, runtime="torch", options=options, progress=progress) as reference,
    ):
        vector = train_vector(
            Trainee(engine, reference),
            problems,
            settings or RlooSettings(),
            folder,
            layers=None if layers is None else tuple(layers),
            gradient=gradient or policy.DEFAULTS,
            on_vector=keep,
            progress=progress,
        )
    save(vector, folder / "vector.safetensors")
    return vector
