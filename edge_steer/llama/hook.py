"""The residual stream while llama.cpp computes a batch: rows are added to it, layer 0 included, and rows are read.

Takes offsets by layer and layers to read, gives the C callback that a llama.cpp context is made with. llama.cpp names
the residual stream after block N `l_out-N` and asks the callback about every node of its graph, so asking is to look
up the first 8 bytes of the node's name. It knows nothing of contexts, sequences or phases; rows come in the order of
the batch.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp._ggml import libggml

from edge_steer.core.errors import ModelError
from edge_steer.core.vector import Array

RESIDUAL = b"l_out-"
# const char * ggml_get_name(const struct ggml_tensor * tensor);  size_t ggml_nbytes(const struct ggml_tensor * tensor);
libggml.ggml_get_name.argtypes, libggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_void_p
libggml.ggml_nbytes.argtypes, libggml.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t

# a tensor, of which only the name is read here, in words of 8 bytes
Tensor = ctypes.POINTER(ctypes.c_uint64)
# typedef bool (*ggml_backend_sched_eval_callback)(struct ggml_tensor * t, bool ask, void * user_data);
Visit = ctypes.CFUNCTYPE(ctypes.c_bool, Tensor, ctypes.c_bool, ctypes.c_void_p)
NAME = libggml.ggml_get_name(4096) - 4096  # where the name is in a tensor, in bytes; it only adds
WORD = NAME // 8


# void ggml_backend_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size); and set
for _transfer in (libggml.ggml_backend_tensor_get, libggml.ggml_backend_tensor_set):
    _transfer.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    _transfer.restype = None


class ResidualHook:
    """The callback of one context, what it adds and what it reads. Keep it as long as the context."""

    def __init__(self, hidden_size: int, batch: int) -> None:
        """batch: the most tokens that llama.cpp computes as one graph."""
        self._visitor = Visit(self._visit)
        self.callback = ctypes.cast(self._visitor, llama_cpp.ggml_backend_sched_eval_callback)
        self._hidden_size, self._batch = hidden_size, batch
        self._rows: Mapping[int, Array] = {}
        self._reading: tuple[int, ...] = ()
        self._last: int | None = None  # no block beyond it is computed
        self._marked = np.empty(0, dtype=np.bool_)
        self._sequences: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._graphs: list[npt.NDArray[np.intp]] = []
        self._visits: Counter[int] = Counter()
        self._states: dict[int, Array] = {}
        self._wanted: dict[bytes, int] = {}
        self._words: frozenset[int] = frozenset()
        self._seen: set[int] = set()
        self._error: BaseException | None = None

    def add(self, rows: Mapping[int, Array]) -> None:
        """From now on add to each batch: layer -> float32 (rows of the batch, hidden_size), or (1, hidden_size)."""
        self._rows = rows
        self._want()

    def read(self, layers: Sequence[int], *, logits: bool = False) -> None:
        """From now on keep the marked rows of each batch after `layers`.

        Without logits no batch is computed beyond the last of them. A batch must be of one sequence, so that llama.cpp
        does not split it.
        """
        self._reading = tuple(layers)
        self._last = None if logits else max(layers, default=None)
        self._want()

    def mark(self, marked: npt.NDArray[np.bool_], sequences: npt.NDArray[np.int32]) -> None:
        """Before a batch: which of its rows are read, and whose each is. They must be those whose outputs are wanted.

        llama.cpp drops all others before the last block's residual add.
        """
        if sequences.tobytes() != self._sequences.tobytes():  # a generation's steps are alike
            self._sequences, self._graphs = sequences.copy(), []
        self._marked, self._states = marked, {}
        self._visits.clear()

    def states(self) -> Array:
        """The rows read from the last batch: float32 (layers, marked, hidden_size)."""
        return np.stack([self._states[layer] for layer in self._reading])

    def check(self) -> None:
        """After a batch. Errors: ModelError if llama.cpp did not compute one of the layers, or not as rows."""
        missing, self._seen = {*self._rows, *self._reading} - self._seen, set()
        error, self._error = self._error, None
        if error:
            raise error
        if missing:
            raise ModelError(
                f"llama.cpp does not compute l_out-{min(missing)} in this model; it cannot be steered or read there"
            )

    def _want(self) -> None:
        self._wanted = {RESIDUAL + str(layer).encode(): layer for layer in (*self._rows, *self._reading)}
        self._words = frozenset(int.from_bytes(name[:8].ljust(8, b"\0"), sys.byteorder) for name in self._wanted)

    def _visit(self, tensor: Any, ask: bool, _user_data: object) -> bool:
        if ask and tensor[WORD] not in self._words:
            return False
        address = ctypes.addressof(tensor.contents)
        name = ctypes.string_at(address + NAME)
        if ask:
            return name in self._wanted
        layer = self._wanted[name]
        try:
            self._pass(address, layer)
        except Exception as error:  # an exception cannot pass through C; check() raises it
            self._error = error
        return layer != self._last  # False cancels the rest of the graph

    def _pass(self, tensor: int, layer: int) -> None:
        """Add to the states after a block what is to be added, and keep what is to be read."""
        size = libggml.ggml_nbytes(tensor)
        states = np.empty((size // (4 * self._hidden_size), self._hidden_size), dtype=np.float32)
        added = self._rows.get(layer)
        if added is not None and len(added) > 1:
            added = self._of_graph(added, layer, len(states))
        if states.nbytes != size or (size and added is not None and len(added) not in (1, len(states))):
            expected = "" if added is None else f"{len(added)} "
            raise ModelError(f"l_out-{layer} has {size} bytes; expected {expected}rows of {self._hidden_size} floats")
        if size:
            libggml.ggml_backend_tensor_get(tensor, states.ctypes.data, 0, size)
            if added is not None:
                states += added
                libggml.ggml_backend_tensor_set(tensor, states.ctypes.data, 0, size)
        self._seen.add(layer)
        if layer in self._reading:
            self._keep(layer, states)

    def _of_graph(self, added: Array, layer: int, count: int) -> Array:
        """The rows of the graph that llama.cpp computes now: all of its tokens, or the marked ones."""
        self._graphs = self._graphs or graphs(self._sequences, self._batch)
        if self._visits[layer] == len(self._graphs):
            raise ModelError(
                f"llama.cpp computed l_out-{layer} in more parts than the {len(self._graphs)} of the batch"
            )
        tokens = self._graphs[self._visits[layer]]
        self._visits[layer] += 1
        marked = tokens[self._marked[tokens]]
        return added[marked if len(marked) == count else tokens]

    def _keep(self, layer: int, states: Array) -> None:
        if len(states) == len(self._marked):
            states = states[self._marked]
        if len(states) != self._marked.sum() or layer in self._states:
            raise ModelError(f"l_out-{layer} has {len(states)} rows of a batch; {self._marked.sum()} were to be read")
        self._states[layer] = states


def batch_rows(sequences: Sequence[tuple[Mapping[int, Array], int]]) -> dict[int, Array]:
    """Layer -> a row for each token of a batch. sequences: what is added to each, and how many tokens it has."""
    total = sum(count for _, count in sequences)
    rows: dict[int, Array] = {}
    end = 0
    for added, count in sequences:
        start, end = end, end + count
        for layer, offset in added.items():
            rows.setdefault(layer, np.zeros((total, len(offset)), dtype=np.float32))[start:end] = offset
    return rows


def graphs(sequences: npt.NDArray[np.int32], batch: int) -> list[npt.NDArray[np.intp]]:
    """Which tokens of a batch llama.cpp computes together, graph by graph, in its order.

    A graph has equally many tokens of each of some sequences whose ids follow one another, and at most `batch`
    (llama_batch_allocr::split_equal).
    """
    waiting = {int(one): np.flatnonzero(sequences == one) for one in dict.fromkeys(sequences.tolist())}
    parts: list[npt.NDArray[np.intp]] = []
    while waiting:
        together: list[int] = []
        for one in waiting:
            if not together or one == together[-1] + 1:
                together.append(one)
        count = min(*(len(waiting[one]) for one in together), batch // len(together))
        parts.append(np.concatenate([waiting[one][:count] for one in together]))
        for one in together:
            waiting[one] = waiting[one][count:]
        waiting = {one: tokens for one, tokens in waiting.items() if len(tokens)}
    return parts
