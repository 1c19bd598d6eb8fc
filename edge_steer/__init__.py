"""Steer small language models on a laptop: pairs to a vector, a vector to a steered answer, and proof that it holds.

    import edge_steer as es

    vector = es.extract("Qwen/Qwen2.5-1.5B-Instruct", es.read_pairs("pairs.jsonl"))
    with es.load("Qwen/Qwen2.5-1.5B-Instruct", "Q4_K_M") as model:
        print(model.ask("If 3x + 4 = 19, what is x?", steer=vector.at(17) * 4))

Each name is imported when it is first used, so `import edge_steer` is quick and loads no runtime. A path is a str or a
Path. `steer` is a vector (used as its tuning says), a Steering, several of them, or None. Errors: EdgeSteerError.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_steer.adapters.change import Change
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
    from edge_steer.models.exchange import Exchange
    from edge_steer.models.load import load
    from edge_steer.models.quantize import quantize
    from edge_steer.pairs.pair import Pair, read_pairs, write_pairs
    from edge_steer.plugins.llama_cpp_python import steer
    from edge_steer.tasks.load import load_task
    from edge_steer.tasks.rows import Row
    from edge_steer.tasks.task import Task
    from edge_steer.training.policy import GradientOptions
    from edge_steer.training.settings import Adapter, RlooSettings, SftSettings
    from edge_steer.training.sft import Demonstration
    from edge_steer.vectors.read import load as load_vector
    from edge_steer.vectors.write import save as save_vector

_PLACES = {
    "Adapter": "training.settings",
    "Completion": "core.backend",
    "EdgeSteerError": "core.errors",
    "EngineOptions": "core.backend",
    "GradientOptions": "training.policy",
    "Pair": "pairs.pair",
    "Progress": "core.progress",
    "Request": "core.backend",
    "RlooSettings": "training.settings",
    "SftSettings": "training.settings",
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
TRAINED = {"vector": "vector", "lora": "adapter", "full": "model"}  # the name of what training a kind gives
__all__ = [
    "Adapter",
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
    "SftSettings",
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
    "train_adapter",
    "train_sft",
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

    layers: None is every block. The rest is as `train_adapter` has it. Errors: EdgeSteerError.
    """
    from edge_steer.training.settings import Adapter
    from edge_steer.vectors.read import load as load_vector

    adapter = Adapter(layers=None if layers is None else tuple(layers))
    return load_vector(
        train_adapter(
            model, task, folder, adapter, settings, gguf=gguf, quant=quant, options=options, gradient=gradient,
            keep_every=keep_every, progress=progress,
        )
    )  # fmt: skip


def train_adapter(
    model: str | Path,
    task: "str | Path | Task",
    folder: str | Path,
    adapter: "Adapter",
    settings: "RlooSettings | None" = None,
    *,
    gguf: str | Path | None = None,
    quant: str | None = None,
    options: "EngineOptions | None" = None,
    gradient: "GradientOptions | None" = None,
    keep_every: int = 25,
    progress: "Progress | None" = None,
) -> Path:
    """Train a vector, low-rank matrices or all weights by reinforcement learning (RLOO); where they were written.

    model: whose weights have the gradient in PyTorch: a Hugging Face folder or hub id, or a GGUF, dequantised. gguf:
    the file that answers in llama.cpp; None is `model` itself, quantised to `quant` if that is given. task: of its name
    the training split is taken. adapter: gives vector.safetensors; or adapter.gguf, beside it adapter, a folder of
    PEFT; or model.gguf, in float32. folder: log.jsonl, the state from which the same call goes on, the answers of each
    step, and what was trained after every `keep_every` steps. Errors: EdgeSteerError.
    """
    from edge_steer.core.progress import SILENT
    from edge_steer.models.exchange import Exchange
    from edge_steer.models.load import DEFAULTS, load
    from edge_steer.models.quantize import gguf_for
    from edge_steer.training import policy
    from edge_steer.training.rloo import train_rloo
    from edge_steer.training.rollouts import training_task
    from edge_steer.training.settings import RlooSettings
    from edge_steer.training.trainee import Trainee

    problems = training_task(task) if isinstance(task, str | Path) else task
    options, progress, folder = options or DEFAULTS, progress or SILENT, Path(folder)
    file = gguf_for(gguf or model, quant, threads=options.threads, progress=progress)
    with ExitStack() as stack:
        exchange = None if adapter.kind == "vector" else stack.enter_context(Exchange(file, options))
        engine = stack.enter_context(load(file, options=options, progress=progress))
        reference = stack.enter_context(load(model, runtime="torch", options=options, progress=progress))

        def keep(step: int, change: "Callable[[], Change]") -> None:
            if step % keep_every == 0:
                _save(change(), folder / f"step-{step:05}", model, exchange)

        change = train_rloo(
            Trainee(engine, reference, exchange),
            problems,
            settings or RlooSettings(),
            folder,
            adapter=adapter,
            gradient=gradient or policy.DEFAULTS,
            on_step=keep,
            progress=progress,
        )
        return _save(change, folder / TRAINED[adapter.kind], model, exchange)


def train_sft(
    model: str | Path,
    demonstrations: "Sequence[Demonstration]",
    folder: str | Path,
    settings: "SftSettings | None" = None,
    *,
    adapter: "Adapter | None" = None,
    options: "EngineOptions | None" = None,
    gradient: "GradientOptions | None" = None,
    progress: "Progress | None" = None,
) -> Path:
    """Train on teachers' solutions (supervised fine-tuning, distillation); where what was trained was written.

    model: as `load` takes it; a GGUF is dequantised. demonstrations: of `training.sft.read_demonstrations` and `mix`.
    adapter: None is all weights; what is written is as of `train_adapter`. folder: also log.jsonl, the state from which
    the same call goes on, and learnability.json: how likely solutions of each teacher were before and after.
    Errors: EdgeSteerError.
    """
    from edge_steer.core.progress import SILENT
    from edge_steer.models.exchange import Exchange
    from edge_steer.models.load import DEFAULTS, load
    from edge_steer.models.quantize import gguf_for
    from edge_steer.training import policy
    from edge_steer.training.settings import Adapter, SftSettings
    from edge_steer.training.sft import train_sft as train

    adapter, options = adapter or Adapter("full"), options or DEFAULTS
    progress, folder = progress or SILENT, Path(folder)
    with ExitStack() as stack:
        exchange = None
        if adapter.kind == "full":
            file = gguf_for(model, threads=options.threads, progress=progress)
            exchange = stack.enter_context(Exchange(file, options))
        reference = stack.enter_context(load(model, runtime="torch", options=options, progress=progress))
        result = train(
            reference, demonstrations, settings or SftSettings(), folder, adapter=adapter,
            gradient=gradient or policy.DEFAULTS, progress=progress,
        )  # fmt: skip
        return _save(result.change, folder / TRAINED[adapter.kind], model, exchange)


def _save(change: "Change", path: Path, model: str | Path, exchange: "Exchange | None") -> Path:
    """What was trained, as `path` with the ending of its kind."""
    from edge_steer.adapters.change import LowRank
    from edge_steer.core.vector import SteeringVector
    from edge_steer.vectors.write import save

    if isinstance(change, SteeringVector):
        path = path.with_suffix(".safetensors")
        save(change, path)
        return path
    if isinstance(change, LowRank):
        replace(change, base=str(model)).write_peft(path)
        return change.write_gguf(path.with_suffix(".gguf"))
    assert exchange is not None
    return exchange.write(change, path.with_suffix(".gguf"))
