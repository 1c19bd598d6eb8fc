"""This machine: what llama.cpp can use of it, and how a model file would be run on it.

Takes a file and what was asked for, gives settings without a gap. It loads no model, but where llama.cpp has to be
tried once; see llama/library.py.
"""

from dataclasses import replace

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.llama import library
from edge_steer.models.file import ModelFile


def system_info() -> dict[str, str]:
    """What llama.cpp was built with, and whether it can offload to a GPU."""
    return library.system_info()


def describe_machine() -> dict[str, str | int]:
    """`system_info`, and the processor cores that llama.cpp takes when nothing is asked for."""
    return {"cores this process may use": available_cores(), **system_info()}


def resolve_options(file: ModelFile, options: EngineOptions) -> EngineOptions:
    """The options with the threads and the context that stand for None here. Errors: ModelError for no model file."""
    return replace(
        options, threads=options.threads or available_cores(), context=options.context or file.trained_context
    )


def repacks_weights(file: ModelFile) -> bool:
    """Whether llama.cpp lays this file's weights out for this CPU, which changes logits by rounding."""
    return library.repacking_is_safe(file.path)
