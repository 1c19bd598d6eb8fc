"""A GGUF file to certify, and how it is run."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.architectures import check_architecture
from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.llama.engine import Engine
from edge_steer.llama.library import repacking_is_safe
from edge_steer.models import describe, quantize
from edge_steer.parity.compare import check_exact
from edge_steer.storage.gguf_header import read_header

EXACT = {"kv_type": "f32", "flash_attention": "off"}  # of an F32 file: nothing but rounding is left
REPACK = "repack"  # whether llama.cpp lays weights out for this CPU, which changes logits; it is not chosen
CONDITIONS = ("kv_type", "flash_attention", "parallel", "context", "gpu_layers")  # that are chosen, with the threads


@dataclass(frozen=True)
class File:
    """A GGUF to certify. source: what it was made from or where it lies, as the certificate names it."""

    path: Path
    quant: str
    source: str
    conditions: Mapping[str, Any]


def file_of(source: str | Path, quant: str | None, folder: Path, options: EngineOptions, **located: Any) -> File:
    """A file to certify, made if need be, and how it is run: as `options` say, but for F32, whose mechanism is checked.

    options: of Engine.load. located: as models.gguf_for.
    """
    path = quantize.gguf_for(source, quant, threads=options.threads, **located)
    found = describe.quant_of(path)
    asked = {name: getattr(options, name) for name in CONDITIONS}
    threads = {"threads": options.threads or available_cores()}
    exact = EXACT if found == "F32" else {}
    return File(
        path, found, stated(str(source), folder), {**asked, **threads, **exact, REPACK: repacking_is_safe(path)}
    )  # fmt: skip


def check_files(files: Sequence[File], steered: bool) -> None:
    """Errors: ModelError for a file that cannot be compared, told from its header before anything is computed."""
    for file in files:
        architecture = read_header(file.path).architecture
        check_exact(file.quant, architecture)
        if steered:
            check_architecture(architecture)


@contextlib.contextmanager
def opened(path: Path, conditions: Mapping[str, Any]) -> Iterator[Engine]:
    """A file, run as its conditions say."""
    with Engine.load(
        path, EngineOptions(**{name: value for name, value in conditions.items() if name != REPACK})
    ) as engine:
        yield engine


def stated(source: str, folder: Path) -> str:
    """A file or folder as seen from the certificate's; a hub id as it is."""
    return Path(os.path.relpath(source, folder)).as_posix() if Path(source).exists() else source
