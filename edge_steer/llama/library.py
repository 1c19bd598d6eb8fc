"""The llama.cpp library itself: how it was built, what this machine offers it, what it complains of."""

import atexit
import contextlib
import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import llama_cpp

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.quants import QUANTS
from edge_steer.storage.digests import digest
from edge_steer.storage.files import cache_folder, write_text
from edge_steer.storage.gguf_header import read_header

GGML_LOG_LEVEL_ERROR = 4  # enum ggml_log_level, ggml.h
_complaints: list[str] = []


# typedef void (*ggml_log_callback)(enum ggml_log_level level, const char * text, void * user_data);
@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_complaints(level: int, text: bytes, _user_data: object) -> None:
    words = text.decode(errors="replace").strip("= \n")
    if level == GGML_LOG_LEVEL_ERROR and words:
        _complaints.append(words)


llama_cpp.llama_log_set(_keep_complaints, ctypes.c_void_p(0))
# A Llama freed while Python ends would log into a callback that is gone; llama_time_us ignores its arguments.
_SILENCE = ctypes.cast(llama_cpp.llama_cpp._lib.llama_time_us, llama_cpp.llama_log_callback)
atexit.register(llama_cpp.llama_log_set, _SILENCE, ctypes.c_void_p(0))


def system_info() -> dict[str, str]:
    """What llama.cpp was built with, and whether it can offload to a GPU."""
    return {
        "llama-cpp-python": llama_cpp.__version__,
        "cpu features": _cpu_features(),
        "gpu offload": "yes" if llama_cpp.llama_supports_gpu_offload() else "no",
    }


def _cpu_features() -> str:
    return str(llama_cpp.llama_print_system_info().decode().strip(" |\n"))


def repacking_is_safe(path: Path) -> bool:
    """False where llama.cpp's AMX kernels kill the process, tried once for each build in a child process.

    On CPUs with AMX llama.cpp multiplies repacked weights by AMX tiles. GCC before 13 drops the stores of the tile
    configuration, so a wheel built by it faults at the first batch: what `pip install` makes on Debian 12, for one.
    """
    if "AMX_INT8 = 1" not in _cpu_features():
        return True
    if read_header(path).metadata.get("general.file_type") in {QUANTS[name] for name in ("F32", "F16", "BF16")}:
        return True
    kernels = Path(llama_cpp.__file__).parent / "lib" / "libggml-cpu.so"
    verdict = cache_folder() / f"amx-{digest(kernels)[:16]}"
    if not verdict.exists():
        probe = [sys.executable, "-m", "edge_steer.llama.context", str(path)]
        status = subprocess.run(probe, capture_output=True, check=False).returncode
        if status > 0:
            return False
        write_text(verdict, "faults" if status else "works")
    return verdict.read_text() == "works"


def forget_complaints() -> None:
    _complaints.clear()


def complaint() -> str:
    """What llama.cpp complained of first since `forget_complaints`; "" if of nothing."""
    return next(iter(_complaints), "")


@contextlib.contextmanager
def complaining(what: str) -> Iterator[None]:
    """Turn an error raised inside into one line that ends with llama.cpp's own last words; interrupts wait."""
    forget_complaints()
    try:
        with interrupts_wait():
            yield
    except EdgeSteerError as error:
        words = str(error) or complaint() or "it gave no reason"
        raise type(error)(f"{what}: {words}") from None


class _Interrupts(list["FrameType | None"]):
    """The frames in which SIGINT came while it had to wait."""

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        self.append(frame)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[list[FrameType | None]]:
    """Ctrl-C in a C call that calls back into Python, as llama.cpp's log does, would be lost; it takes effect after.

    Gives the list of those that wait.
    """
    handler = signal.getsignal(signal.SIGINT)
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield interrupts
        return
    if isinstance(handler, _Interrupts):
        yield handler
        return
    signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, handler)
        if interrupts:
            handler(signal.SIGINT, interrupts[0])
