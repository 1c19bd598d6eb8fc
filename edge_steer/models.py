"""From Hugging Face weights to a quantised GGUF, by llama.cpp's own converter and quantiser.

Takes what sources.py knows as a model; gives GGUF files, whole or not at all. The converter is that of the installed
llama-cpp-python, fetched once from its source distribution. Results without a target of their own are cached under
a digest of everything they were made from. It reads no weights itself, and no pickles are ever opened.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from edge_steer import convert_driver, hub, sources
from edge_steer.errors import EdgeSteerError, ModelError, need
from edge_steer.files import cache_folder, digest, readable, replacing
from edge_steer.gguf_header import BF16, F16, F32, Header, read_header
from edge_steer.llama import QUANTS, quantize_file

OUTTYPES = ("F32", "F16", "BF16")  # what the converter is asked for; every other type is the quantiser's work

Progress = Callable[[str], None]

_OF_DTYPE = {"float16": "F16", "bfloat16": "BF16"}  # without loss; any other dtype becomes F32
_CONVERTER = re.compile(r"[^/]+/vendor/llama\.cpp/(LICENSE|convert_hf_to_gguf\.py|(conversion|gguf-py/gguf)/.+)")


def _silent(_message: str) -> None:
    pass


def gguf_for(
    source: str | Path,
    quant: str | None = None,
    *,
    revision: str | None = None,
    threads: int | None = None,
    progress: Progress = _silent,
) -> Path:
    """A GGUF of `source`, as sources.py has it, in the type `quant`, from the cache where it is there.

    quant: None is the GGUF itself, or for Hugging Face weights the type that loses nothing. Errors: ModelError.
    """
    quant = None if quant is None else _known(quant, tuple(QUANTS))
    if path := sources.gguf(source, quant, revision=revision, progress=progress):
        if quant in (None, quant_of(path)):
            return path
        return quantize(path, quant, threads=threads, progress=progress)
    if quant is None or quant in OUTTYPES:
        return convert(source, outtype=quant, revision=revision, progress=progress)
    lossless = convert(source, revision=revision, progress=progress)
    return quantize(lossless, quant, threads=threads, progress=progress)


def convert(
    source: str | Path,
    target: Path | None = None,
    outtype: str | None = None,
    *,
    revision: str | None = None,
    progress: Progress = _silent,
) -> Path:
    """Hugging Face weights (a folder or a hub id) as a GGUF, by llama.cpp's converter; where it was written.

    target: None is the cache. outtype: F32, F16 or BF16; None is the one that loses nothing.
    Errors: ModelError for a folder without safetensors, an architecture or tokenizer llama.cpp has not, no network.
    """
    if outtype is not None:
        outtype = _known(outtype, OUTTYPES)
    need("convert")
    located = sources.located(source, revision)
    folder, name = located.folder, located.name.rpartition("/")[2]
    readable(folder / "config.json", "a model's config.json")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{source} holds no .safetensors; weights in other formats are not read")
    outtype = outtype or _lossless(folder)
    if target is None:
        inputs = sorted(path for pattern in (*hub.FILES, "*.md") for path in folder.glob(pattern))
        made_from = [_version(), name, outtype, *(f"{path.name} {digest(path)}" for path in inputs)]
        if (target := _cached(f"{name}-{outtype}", made_from)).is_file():
            return target
    scripts = converter(progress)
    progress(f"converting {name} to {outtype}")
    with replacing(target) as temporary:
        command = [sys.executable, "-P", convert_driver.__file__, str(scripts), str(folder.resolve())]
        command += ["--outtype", outtype.lower(), "--outfile", str(temporary.resolve()), "--model-name", name]
        _run(command, f"llama.cpp's converter refuses {source}", {"HF_HUB_OFFLINE": "1"})
    return target


def quantize(
    source: Path,
    quant: str,
    target: Path | None = None,
    *,
    threads: int | None = None,
    progress: Progress = _silent,
) -> Path:
    """An F32, F16 or BF16 GGUF quantised by llama.cpp; where it was written. target: None is the cache.

    Errors: ModelError for an unknown quant, a source that is quantised already or is no model.
    """
    quant = _known(quant, tuple(QUANTS))
    header = _header(source)
    if "controlvector" in header.architecture or not header.tensors:
        raise ModelError(f"{source} is a GGUF of {header.architecture!r} with {len(header.tensors)} tensors, no model")
    if any(tensor.type not in (F32, F16, BF16) for tensor in header.tensors):
        raise ModelError(f"{source} is quantised already; quantise the F32, F16 or BF16 file it was made from")
    if target is None:
        stem = re.sub(rf"-({'|'.join(OUTTYPES)})(-[0-9a-f]{{16}})?$", "", source.stem)
        if (target := _cached(f"{stem}-{quant}", [_version(), quant, digest(source)])).is_file():
            return target
    elif target.exists() and target.samefile(source):
        raise ModelError(f"{target} is the source itself; name another file to write")
    progress(f"quantising {source.name} to {quant}")
    quantize_file(source, target, quant, threads)
    return target


def quant_of(path: Path) -> str:
    """The type a GGUF model says it was written in; "unknown" if it says none of QUANTS. Errors: ModelError."""
    file_type = _header(path).metadata.get("general.file_type")
    return next((quant for quant, known in QUANTS.items() if known == file_type), "unknown")


def converter_folder() -> Path:
    """Where llama.cpp's converter of the installed version is kept; it need not be there yet."""
    return cache_folder() / f"llama.cpp-{_version()}"


def converter(progress: Progress = _silent) -> Path:
    """`converter_folder()`, filled from llama-cpp-python's source distribution if need be: the one use of the network.

    Errors: ModelError when pip cannot fetch it.
    """
    folder = converter_folder()
    if folder.is_dir():
        return folder
    progress(f"fetching llama.cpp's converter of version {_version()}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        command += [
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            f"llama-cpp-python=={_version()}",
            "--dest",
            scratch,
        ]
        _run(command, "cannot fetch llama.cpp's converter (needed once, by pip, from the package index)", {})
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            wanted = [member for member in tar if member.isfile() and _CONVERTER.fullmatch(member.name)]
            tar.extractall(scratch, wanted, filter="data")
        (unpacked,) = Path(scratch).glob("*/vendor/llama.cpp")
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder


def _known(name: str, allowed: tuple[str, ...]) -> str:
    if name.upper() not in allowed:
        raise ModelError(f"no type {name!r}; allowed are {', '.join(allowed)}")
    return name.upper()


def _version() -> str:
    return importlib.metadata.version("llama-cpp-python").split("+")[0]


def _cached(stem: str, made_from: list[str]) -> Path:
    return cache_folder() / f"{stem}-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]}.gguf"


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except EdgeSteerError as error:
        raise ModelError(str(error)) from None


def _lossless(folder: Path) -> str:
    """The outtype that holds the folder's weights exactly."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _OF_DTYPE.get(config.get("dtype") or config.get("torch_dtype"), "F32")
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} is no model's config: {error}") from None


def _run(command: list[str], failure: str, environment: dict[str, str]) -> None:
    """Run to its end; a status other than 0 raises ModelError with the last line it wrote to stderr."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=os.environ | environment)
    if done.returncode:
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise ModelError(f"{failure}: {words[-1][:300]}")
