"""Hugging Face weights to a GGUF, by llama.cpp's own converter.

Takes a folder, a hub id or a snapshot, gives a GGUF file, whole or not at all. The converter is that of the installed
llama-cpp-python, fetched once from its source distribution. A file without a target of its own goes to the cache, named
by a digest of all it was made from. This module reads no weights, and no pickle is ever opened.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from edge_steer.adapters import peft_folder
from edge_steer.core.errors import EdgeSteerError, ModelError, need
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.quants import OUTTYPES
from edge_steer.models import convert_driver, sources
from edge_steer.storage import hub, package_index
from edge_steer.storage.digests import digest
from edge_steer.storage.files import cache_folder, readable, replacing
from edge_steer.storage.hub import Snapshot
from edge_steer.storage.provenance import key

_OF_DTYPE = {"float16": "F16", "bfloat16": "BF16"}  # without loss; any other dtype becomes F32
_CONVERTER = re.compile(r"[^/]+/vendor/llama\.cpp/(LICENSE|convert_(hf|lora)_to_gguf\.py|(conversion|gguf-py/gguf)/.+)")


def convert(
    source: str | Path | Snapshot,
    target: str | Path | None = None,
    outtype: str | None = None,
    *,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Hugging Face weights (a folder, a hub id, a snapshot) as a GGUF, by llama.cpp's converter; where it was written.

    target: None is the cache. outtype: F32, F16 or BF16; None is the one that loses nothing.
    Errors: ModelError for a folder without safetensors, an architecture or tokenizer llama.cpp has not, no network.
    """
    if outtype is not None:
        outtype = known_type(outtype, OUTTYPES)
    need("convert")
    snapshot = source if isinstance(source, Snapshot) else sources.weights(source, revision)
    folder, name = snapshot.folder, snapshot.name.rpartition("/")[2]
    readable(folder / "config.json", "a model's config.json")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no .safetensors; weights in other formats are not read")
    outtype = outtype or _lossless(folder)
    if target is None:
        origin = [llama_version(), snapshot.name, outtype, *_content(snapshot)]
        if (target := cached_path(f"{name}-{outtype}", origin)).is_file():
            return target
    scripts = fetch_converter(progress)
    progress.note(f"converting {name} to {outtype}")
    with replacing(target) as temporary:
        command = [sys.executable, "-P", convert_driver.__file__, str(scripts), str(folder.resolve())]
        command += ["--outtype", outtype.lower(), "--outfile", str(temporary.resolve()), "--model-name", name]
        _run(command, f"llama.cpp's converter refuses {folder}", {"HF_HUB_OFFLINE": "1"})
    return Path(target)


def convert_adapter(
    folder: str | Path,
    base: str | Path | None = None,
    target: str | Path | None = None,
    *,
    progress: Progress = SILENT,
) -> Path:
    """An adapter of PEFT as a GGUF LoRA in float32, by llama.cpp's converter; where it was written.

    base: the model it was trained on, of which the settings alone are read: a Hugging Face folder or a hub id; None is
    the one that the adapter names. target: None is the cache. Errors: ModelError for an adapter that cannot be honoured
    or that the converter refuses, a base that is not there, no network.
    """
    need("convert")
    adapter = peft_folder.read(folder)
    if not (base := base or adapter.base):
        raise ModelError(f"{folder} names no model that it was trained on; name its Hugging Face folder")
    base_folder = sources.weights(base).folder
    config = readable(base_folder / "config.json", "the config.json of the model that the adapter was trained on")
    if target is None:
        origin = [llama_version(), adapter.digest, digest(config)]
        if (target := cached_path(f"{adapter.folder.resolve().name}-lora", origin)).is_file():
            return target
    scripts = fetch_converter(progress)
    progress.note(f"converting the adapter {adapter.folder} to GGUF")
    with replacing(target) as temporary, tempfile.TemporaryDirectory() as plain:
        (Path(plain) / peft_folder.CONFIG).write_text(json.dumps(adapter.plain_settings()))
        (Path(plain) / peft_folder.WEIGHTS).symlink_to((adapter.folder / peft_folder.WEIGHTS).resolve())
        command = [sys.executable, str(scripts / "convert_lora_to_gguf.py"), plain, "--outtype", "f32"]
        command += ["--base", str(base_folder.resolve()), "--outfile", str(temporary.resolve())]
        _run(command, f"llama.cpp's converter refuses the adapter {folder}", {"HF_HUB_OFFLINE": "1"})
    return Path(target)


def converter_folder() -> Path:
    """Where llama.cpp's converter of the installed version is kept; it need not be there yet."""
    return cache_folder() / f"llama.cpp-converters-{llama_version()}"


def fetch_converter(progress: Progress = SILENT) -> Path:
    """`converter_folder()`, filled from llama-cpp-python's source distribution if need be: the one use of the network.

    Errors: ModelError when pip cannot fetch it.
    """
    folder = converter_folder()
    if folder.is_dir():
        return folder
    progress.note(f"fetching llama.cpp's converter of version {llama_version()}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        try:
            archive = package_index.download(f"llama-cpp-python=={llama_version()}", scratch, source=True)
        except EdgeSteerError as error:
            raise ModelError(f"cannot fetch llama.cpp's converter (needed once): {error}") from None
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.isfile() and _CONVERTER.fullmatch(member.name)]
            tar.extractall(scratch, members, filter="data")
        (unpacked,) = Path(scratch).glob("*/vendor/llama.cpp")
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder


def known_type(name: str, allowed: tuple[str, ...]) -> str:
    """A type's name in capitals. Errors: ModelError if it is not allowed."""
    if name.upper() not in allowed:
        raise ModelError(f"no type {name!r}; allowed are {', '.join(allowed)}")
    return name.upper()


def llama_version() -> str:
    """The version of llama-cpp-python, without its build."""
    return importlib.metadata.version("llama-cpp-python").split("+")[0]


def cached_path(stem: str, origin: list[str]) -> Path:
    """Where a file made from `origin`, all that it depends on, is kept; it need not be there yet."""
    return cache_folder() / f"{stem}-{key(origin, length=16)}.gguf"


def _content(snapshot: Snapshot) -> list[str]:
    """What tells a model's files from others: their commit on the hub, or the digests of all that is converted."""
    if snapshot.commit:
        return [snapshot.commit]
    paths = sorted(path for pattern in (*hub.FILES, "*.md") for path in snapshot.folder.glob(pattern))
    return [f"{path.name} {digest(path)}" for path in paths]


def _lossless(folder: Path) -> str:
    """The outtype that holds the folder's weights exactly."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _OF_DTYPE.get(config.get("dtype") or config.get("torch_dtype"), "F32")
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} is no model's config: {error}") from None


def _run(command: list[str], failure: str, environment: dict[str, str]) -> None:
    """Run to its end; a status other than 0 raises ModelError with the last line it wrote to stderr."""
    process = subprocess.run(command, capture_output=True, text=True, errors="replace", env=os.environ | environment)
    if process.returncode:
        lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
        raise ModelError(f"{failure}: {lines[-1][:300] if lines else f'status {process.returncode}'}")
