"""What a certificate names: GGUF files and how they run, and the files that vectors are in.

Takes what a user names, gives files that lie here; refuses what cannot be compared before anything is computed.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_steer.core.architectures import check_architecture
from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steer, Steering, steerings
from edge_steer.core.vector import SteeringVector
from edge_steer.models.file import ModelFile
from edge_steer.models.quantize import gguf_for
from edge_steer.parity.mechanism import check_exact, options_for
from edge_steer.vectors.write import save


@dataclass(frozen=True)
class CertifiedFile:
    """A GGUF file to certify. source: what it was made from or where it lies. options: how it runs."""

    file: ModelFile
    source: str
    options: EngineOptions

    @property
    def quant(self) -> str:
        return self.file.quant


def certified_files(
    sources: str | Path | Iterable[str | Path],
    quants: Sequence[str],
    revision: str | None,
    options: EngineOptions,
    progress: Progress = SILENT,
) -> list[CertifiedFile]:
    """The files that `sources` name, made if need be. quants: types to make of the one source; none: as it is.

    Errors: EdgeSteerError for no file, for quants of several, or for two files of one type, ModelError.
    """
    named = [sources] if isinstance(sources, str | Path) else list(sources)
    if not named:
        raise EdgeSteerError("no file to certify; name at least one")
    if len(named) > 1 and quants:
        raise EdgeSteerError("types are made of one model; name several files without types")
    files = [
        certified_file(source, quant, revision, options, progress) for source in named for quant in quants or (None,)
    ]
    if len({file.quant for file in files}) < len(files):
        raise EdgeSteerError("two files are of the same type; make a certificate for each in a folder of its own")
    return files


def certified_file(
    source: str | Path, quant: str | None, revision: str | None, options: EngineOptions, progress: Progress = SILENT
) -> CertifiedFile:
    """One file. It runs as `options` say; an exact one runs exactly. Errors: ModelError."""
    file = ModelFile(gguf_for(source, quant, revision=revision, threads=options.threads, progress=progress))
    with_threads = replace(options, threads=options.threads or available_cores())
    return CertifiedFile(file, str(source), options_for(file.quant, with_threads))


def check_files(files: Iterable[CertifiedFile], *, steered: bool) -> None:
    """Errors: ModelError for a file that cannot be compared, known from its header."""
    for certified in files:
        architecture = certified.file.header.architecture
        check_exact(certified.quant, architecture)
        if steered:
            check_architecture(architecture)


@dataclass(frozen=True)
class SteeringFile:
    """A steering, and the file its vector is in."""

    steering: Steering
    path: Path


CertifiedSteer = Steer | Iterable[SteeringVector | Steering | SteeringFile]


def steerings_of(steer: CertifiedSteer) -> tuple[Steering, ...]:
    """The steerings without their files. Errors: VectorError for what cannot steer."""
    sources = [steer] if isinstance(steer, SteeringVector | Steering) else steer or ()
    return tuple(one.steering if isinstance(one, SteeringFile) else steerings(one)[0] for one in sources)


def steering_files(steer: CertifiedSteer, folder: Path, name: str = "vector") -> tuple[SteeringFile, ...]:
    """The steerings with their files. A vector that is in no file is written into the folder, under a name like `name`.

    Errors: VectorError for what cannot steer.
    """
    files = []
    for number, one in enumerate([steer] if isinstance(steer, SteeringVector | Steering) else steer or (), start=1):
        if not isinstance(one, SteeringFile):
            [steering] = steerings(one)
            one = SteeringFile(steering, save(steering.vector, folder / f"{name}-{number}.safetensors"))
        files.append(one)
    return tuple(files)


def path_from(source: str | Path, folder: Path) -> str:
    """A file or folder as seen from the certificate's folder; a hub id as it is."""
    return Path(os.path.relpath(source, folder)).as_posix() if Path(source).exists() else str(source)


def path_at(source: str, folder: Path) -> str:
    """The inverse of `path_from`."""
    return str(folder / source) if (folder / source).exists() else source
