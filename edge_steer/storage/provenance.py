"""What a result depends on: versions of packages, and a short key of any settings.

Takes names and JSON values, gives what headers of result files say. It knows nothing of what the results are.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

from edge_steer.core.backend import Backend


@dataclass(frozen=True)
class Provenance:
    """What the numbers of a running model depend on: its file, how it is run, and with which versions.

    model: name, digest or revision, and number of parameters. backend: name and every setting that changes numbers.
    """

    model: Mapping[str, Any]
    backend: Mapping[str, Any]
    versions: Mapping[str, str]


class RunningModel(Backend, Protocol):
    """A Backend that says what its numbers depend on."""

    @property
    def provenance(self) -> Provenance: ...


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package. Errors: PackageNotFoundError."""
    return {package: version(package) for package in packages}


def key(settings: object, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of JSON settings: equal for equal settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:length]
