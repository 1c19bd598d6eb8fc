"""The GGUF of a MODEL in a type, from the cache where it is there."""

import re
from pathlib import Path

from edge_steer.core.errors import ModelError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.quants import OUTTYPES, QUANTS
from edge_steer.llama.quantizer import quantize_file
from edge_steer.models import sources
from edge_steer.models.convert import cached_path, convert, known_type, llama_version
from edge_steer.models.describe import model_header, quant_of
from edge_steer.storage.files import digest
from edge_steer.storage.gguf_header import BF16, F16, F32


def gguf_for(
    source: str | Path,
    quant: str | None = None,
    *,
    revision: str | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """A GGUF of `source`, as sources.py has it, in the type `quant`, from the cache where it is there.

    quant: None is the GGUF itself, or for Hugging Face weights the type that loses nothing. Errors: ModelError.
    """
    quant = None if quant is None else known_type(quant, tuple(QUANTS))
    if path := sources.gguf(source, quant, revision=revision, progress=progress):
        if quant in (None, quant_of(path)):
            return path
        return quantize(path, quant, threads=threads, progress=progress)
    if quant is None or quant in OUTTYPES:
        return convert(source, outtype=quant, revision=revision, progress=progress)
    lossless = convert(source, revision=revision, progress=progress)
    return quantize(lossless, quant, threads=threads, progress=progress)


def quantize(
    source: Path,
    quant: str,
    target: Path | None = None,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """An F32, F16 or BF16 GGUF quantised by llama.cpp; where it was written. target: None is the cache.

    Errors: ModelError for an unknown quant, a source that is quantised already or is no model.
    """
    quant = known_type(quant, tuple(QUANTS))
    header = model_header(source)
    if "controlvector" in header.architecture or not header.tensors:
        raise ModelError(f"{source} is a GGUF of {header.architecture!r} with {len(header.tensors)} tensors, no model")
    if any(tensor.type not in (F32, F16, BF16) for tensor in header.tensors):
        raise ModelError(f"{source} is quantised already; quantise the F32, F16 or BF16 file it was made from")
    if target is None:
        stem = re.sub(rf"-({'|'.join(OUTTYPES)})(-[0-9a-f]{{16}})?$", "", source.stem)
        if (target := cached_path(f"{stem}-{quant}", [llama_version(), quant, digest(source)])).is_file():
            return target
    elif target.exists() and target.samefile(source):
        raise ModelError(f"{target} is the source itself; name another file to write")
    progress.note(f"quantising {source.name} to {quant}")
    quantize_file(source, target, quant, threads)
    return target
