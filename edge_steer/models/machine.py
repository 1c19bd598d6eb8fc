"""This machine: what llama.cpp can use of it, and whether it lays a file's weights out for its CPU.

Gives names and values for headers, certificates and people. It loads no model, but where llama.cpp's kernels have to be
tried once; see llama/library.py.
"""

from edge_steer.core.backend import available_cores
from edge_steer.llama import library
from edge_steer.models.file import ModelFile


def system_info() -> dict[str, str]:
    """What llama.cpp was built with, and whether it can offload to a GPU."""
    return library.system_info()


def describe_machine() -> dict[str, str | int]:
    """`system_info`, and the processor cores that llama.cpp takes when nothing is asked for."""
    return {"cores this process may use": available_cores(), **system_info()}


def repacks_weights(file: ModelFile) -> bool:
    """Whether llama.cpp lays this file's weights out for this CPU, which changes logits by rounding."""
    return library.repacking_is_safe(file.path)
