"""A MODEL, running: the one place that turns a name into a Backend.

Takes what a user names (a GGUF file, a Hugging Face folder, a recipe's folder, a hub id), gives an Engine of llama.cpp
or a Reference of PyTorch. Either runtime is imported when it is asked for.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from edge_steer.core.backend import PLAIN, EngineOptions, Lora
from edge_steer.core.errors import ModelError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.llama.chat_template import check_template
from edge_steer.models import quantize, sources
from edge_steer.models.convert import convert_adapter

if TYPE_CHECKING:
    from edge_steer.llama.engine import Engine
    from edge_steer.reference.model import Reference

Runtime = Literal["llama", "torch"]
DEFAULTS = EngineOptions()


@overload
def load(
    source: str | Path,
    quant: str | None = None,
    *,
    runtime: Literal["llama"] = "llama",
    revision: str | None = None,
    trust_remote_code: bool = False,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> "Engine": ...


@overload
def load(
    source: str | Path,
    quant: str | None = None,
    *,
    runtime: Literal["torch"],
    revision: str | None = None,
    trust_remote_code: bool = False,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> "Reference": ...


@overload
def load(
    source: str | Path,
    quant: str | None = None,
    *,
    runtime: Runtime,
    revision: str | None = None,
    trust_remote_code: bool = False,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> "Engine | Reference": ...


def load(
    source: str | Path,
    quant: str | None = None,
    *,
    runtime: Runtime = "llama",
    revision: str | None = None,
    trust_remote_code: bool = False,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> "Engine | Reference":
    """The model that `source` names, running; close it when done, or use it in a `with` block.

    quant: quantise to this type first (cached); PyTorch runs the weights as they are. runtime: "llama" for llama.cpp,
    "torch" for PyTorch in float32, which takes `threads`, `template`, `date` and `lora` of the options; a GGUF is
    dequantised for it. trust_remote_code: let PyTorch run the Python code that comes with the model.
    Errors: ModelError.
    """
    if options.template not in (None, PLAIN):
        check_template(options.template)
    if runtime == "torch":
        return _load_reference(source, quant, revision, trust_remote_code, options, progress)
    if runtime != "llama":
        raise ModelError(f"no runtime {runtime!r}; allowed are llama and torch")
    from edge_steer.llama.engine import Engine

    path = quantize.gguf_for(source, quant, revision=revision, threads=options.threads, progress=progress)
    lora = options.lora and gguf_lora_of(options.lora, source, progress)
    loras = tuple(gguf_lora_of(one, source, progress) for one in options.loras)
    return Engine.load(path, replace(options, lora=lora, loras=loras))


def load_recorder(
    source: str | Path,
    runtime: Runtime | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> "Engine | Reference":
    """The model that `source` names, to extract a vector from.

    runtime: None is PyTorch for Hugging Face weights and llama.cpp for a GGUF. Errors: ModelError.
    """
    if runtime is None:
        is_gguf = not Path(source).is_dir() and isinstance(
            sources.find(source, revision=revision, progress=progress), Path
        )
        runtime = "llama" if is_gguf else "torch"
    return load(
        source,
        runtime=runtime,
        revision=revision,
        trust_remote_code=trust_remote_code,
        options=options,
        progress=progress,
    )


def gguf_lora_of(lora: Lora, source: str | Path, progress: Progress = SILENT) -> Lora:
    """The adapter as a LoRA of llama.cpp: a folder of PEFT is converted (cached), with the settings of its model.

    source: the MODEL it runs in; one without such settings, as a GGUF, leaves them to the model that the adapter names.
    Errors: ModelError.
    """
    if not lora.path.is_dir():
        return lora
    base = source if (Path(source) / "config.json").is_file() else None
    return replace(lora, path=convert_adapter(lora.path, base, progress=progress))


def _load_reference(
    source: str | Path,
    quant: str | None,
    revision: str | None,
    trust_remote_code: bool,
    options: EngineOptions,
    progress: Progress,
) -> "Reference":
    if quant:
        raise ModelError("PyTorch runs the weights as they are, in float32; leave out the quant, or use llama.cpp")
    if sources.names_gguf(source):
        files = sources.find(source, revision=revision, progress=progress)
    else:
        files = sources.weights(source, revision)
    if isinstance(files, Path):
        reference = _dequantised(files, options, progress)
    else:
        from edge_steer.reference.model import Reference

        progress("loading the reference")
        reference = Reference.load(
            files,
            threads=options.threads,
            trust_remote_code=trust_remote_code,
            template=options.template,
            date=options.date,
        )
    if options.lora:
        from edge_steer.reference.adapter import merge_adapter

        merge_adapter(reference, options.lora)
    return reference


def _dequantised(path: Path, options: EngineOptions, progress: Progress) -> "Reference":
    """A GGUF's weights in PyTorch, its vocabulary in llama.cpp."""
    from edge_steer.llama.model import LlamaModel
    from edge_steer.reference.gguf_weights import load_dequantised

    progress(f"dequantising {path.name} for PyTorch")
    with ExitStack() as stack:
        vocabulary = stack.enter_context(
            LlamaModel(path, 0, repack=False, template=options.template, date=options.date)
        )
        reference = load_dequantised(path, vocabulary, options.threads)
        stack.pop_all()
    return reference
