"""A GGUF of a MODEL in a type, from the cache where it is there, by llama.cpp's own quantiser."""

import re
from pathlib import Path

from edge_steer.core.errors import ModelError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.quants import OUTTYPES, QUANTS
from edge_steer.llama.quantizer import quantize_file
from edge_steer.models import importance, sources
from edge_steer.models.convert import cached_path, convert, known_type, llama_version
from edge_steer.models.file import ModelFile
from edge_steer.storage.digests import digest
from edge_steer.storage.gguf_header import BF16, F16, F32
from edge_steer.storage.hub import Snapshot

DEQUANTISED = ("F32", "F16")  # what a quantised file can be written as


def gguf_for(
    source: str | Path,
    quant: str | None = None,
    *,
    revision: str | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """A GGUF of a MODEL, as sources.py has it, in the type `quant`, from the cache where it is there.

    quant: None is the GGUF itself, or for Hugging Face weights the type that loses nothing. Errors: ModelError.
    """
    quant = None if quant is None else known_type(quant, tuple(QUANTS))
    files = sources.find(source, quant, revision=revision, progress=progress)
    if isinstance(files, Snapshot):
        if quant is None or quant in OUTTYPES:
            return convert(files, outtype=quant, progress=progress)
        files = convert(files, progress=progress)
    elif quant is None or quant == ModelFile(files).quant:
        return files
    return quantize(files, quant, threads=threads, progress=progress)


def quantize(
    source: str | Path,
    quant: str,
    target: str | Path | None = None,
    *,
    imatrix: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """A MODEL (its F32, F16 or BF16 weights) quantised by llama.cpp; where it was written.

    A file that is quantised already can be dequantised, to F32 or F16; every other type is then made of that file.
    target: None is the cache. imatrix: an importance matrix of llama-imatrix, which the smallest types need.
    Errors: ModelError for an unknown quant, a small type asked of a quantised file, a source that is no model, an
    importance matrix of another model.
    """
    quant = known_type(quant, tuple(QUANTS))
    file = ModelFile(gguf_for(source, threads=threads, progress=progress))
    quantised = any(tensor.type not in (F32, F16, BF16) for tensor in file.header.tensors)
    if quantised and quant not in DEQUANTISED:
        raise ModelError(
            f"{file.path} is quantised already; quantise the F32, F16 or BF16 file it was made from, or dequantise "
            "it to F32 first and quantise that"
        )
    weights = importance.read(imatrix) if imatrix else None
    if target is None:
        stem = re.sub(rf"-({'|'.join(OUTTYPES)})(-[0-9a-f]{{16}})?$", "", file.path.stem)
        origin = [llama_version(), quant, file.digest, *([digest(imatrix)] if imatrix else [])]
        if (target := cached_path(f"{stem}-{quant}", origin)).is_file():
            return target
    target = Path(target)
    if target.exists() and target.samefile(file.path):
        raise ModelError(f"{target} is the source itself; name another file to write")
    progress.note(f"{'dequantising' if quantised else 'quantising'} {file.path.name} to {quant}")
    quantize_file(file.path, target, quant, threads, weights, dequantise=quantised)
    return target
