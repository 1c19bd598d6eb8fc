"""A GGUF model on the disk, as a value: what its header says and its digest, each read once.

Takes a path. It reads no weights but to hash them, and runs nothing.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.quants import QUANTS
from edge_steer.storage.digests import digest
from edge_steer.storage.gguf_header import CONTROL_VECTOR, Header, read_header


@dataclass(frozen=True)
class ModelFile:
    """A GGUF model. Errors, when what is in it is asked for: ModelError for a file that is missing or no model."""

    path: Path

    @cached_property
    def header(self) -> Header:
        try:
            header = read_header(self.path)
        except EdgeSteerError as error:
            raise ModelError(str(error)) from None
        if header.architecture == CONTROL_VECTOR or not header.tensors:
            raise ModelError(
                f"{self.path} is a GGUF of {header.architecture!r} with {len(header.tensors)} tensors, no model"
            )
        return header

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whole file, in hex."""
        return digest(self.path)

    @property
    def quant(self) -> str:
        """The type the file says it was written in; "unknown" if it says none of QUANTS."""
        file_type = self.header.metadata.get("general.file_type")
        return next((quant for quant, known in QUANTS.items() if known == file_type), "unknown")

    @property
    def trained_context(self) -> int | None:
        """How many positions the model was trained on, if the file says so."""
        length = self.header.metadata.get(f"{self.header.architecture}.context_length")
        return length if isinstance(length, int) else None
