"""The errors a user can cause, and the one line each prints. Imports nothing of the package."""

import importlib.util


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


_EXTRAS = {
    "extract": ("torch", "transformers", "huggingface_hub"),
    "convert": ("torch", "transformers", "sentencepiece"),
    "evaluate": ("math_verify", "huggingface_hub"),
    "hub": ("huggingface_hub",),
    "lm-eval": ("lm_eval",),
    "pairs": ("openai",),
    "plots": ("matplotlib",),
    "ray": ("ray", "math_verify"),
}


def need(extra: str) -> None:
    """Raise with the pip line that installs `extra` if one of its packages is missing."""
    missing = [name for name in _EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise EdgeSteerError(f"{', '.join(missing)} not installed; run: pip install 'edge-steer[{extra}]'")
