"""The errors a user can cause, and the one line each prints. Imports nothing of the package."""

import functools
import re

# name[extras]>=version; extra == "name"
_REQUIREMENT = re.compile(r'([\w.-]+)(?:\[([^]]+)\])?[^;]*;\s*extra == "([^"]+)"')


class EdgeSteerError(Exception):
    """Something the user can mend: says what is wrong, what is allowed and the next step, in one line."""


class VectorError(EdgeSteerError):
    """A steering vector or its file cannot be honoured."""


class ModelError(EdgeSteerError):
    """A model or its file cannot be used as asked."""


class OutOfMemory(ModelError):
    """What was asked needs more memory than there is."""


class RequestError(EdgeSteerError):
    """One request cannot be served; others are unaffected."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of another package says; its type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def need(extra: str) -> None:
    """Raise EdgeSteerError with the pip line that installs `extra` if one of its packages is missing."""
    from importlib.metadata import PackageNotFoundError, distribution

    missing = []
    for package in packages_of(extra):
        try:
            distribution(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise EdgeSteerError(f"{', '.join(missing)} not installed; run: pip install 'edge-steer[{extra}]'")


@functools.cache
def packages_of(extra: str) -> tuple[str, ...]:
    """The distributions that an extra of edge-steer asks for, as its metadata lists them."""
    from importlib.metadata import requires

    packages: list[str] = []
    for package, nested, name in filter(None, map(_requirement, requires("edge-steer") or ())):
        if name == extra:
            packages += [inner for part in nested.split(",") for inner in packages_of(part)] if nested else [package]
    return tuple(dict.fromkeys(packages))


def _requirement(text: str) -> tuple[str, str, str] | None:
    """The package, the extras of it and the extra it is for; None for one that every installation has."""
    match = _REQUIREMENT.fullmatch(text)
    return (match[1], match[2] or "", match[3]) if match else None
