"""The base file of llama-perplexity: a reference's log-probabilities in 16 bits, for `--kl-divergence-base`.

    "_logits_"  int32 n_ctx  int32 n_vocab  int32 n_chunk  int32 tokens[n_chunk][n_ctx]
    then for each chunk, for positions n_ctx / 2 to n_ctx - 2, one row of uint16:
        float32 scale, float32 minimum, a code for each token, one of padding where n_vocab is odd
    log-probability = scale * code + minimum; what is more than 16 below the row's largest is cut off there

Takes chunks of tokens and their logits, writes and reads the file. It runs no model.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import logsumexp
from edge_steer.storage.files import readable, replacing

Codes = npt.NDArray[np.uint16]
Logits = npt.NDArray[np.float32]
MAGIC = b"_logits_"
RANGE = np.float32(16)  # in nats, below the likeliest token
STEPS = np.float32(65535)
PIECE_BYTES = 2**22  # of log-probabilities that are read at a time; so few stay in the cache of the processor


def prompt_of(length: int) -> int:
    """The prompt of a chunk of so many tokens as edge-steer counts it: the first row chooses the token after it."""
    return length // 2 + 1


def write(path: Path, chunks: Sequence[Sequence[int]], vocabulary: int, rows: Iterable[Iterable[Logits]]) -> None:
    """Write a base file. rows: for each chunk its logits from position len / 2 on, in pieces; a last one is left out.

    Errors: EdgeSteerError for no chunks, chunks of unequal or odd length, or another number of rows or tokens.
    """
    lengths = {len(chunk) for chunk in chunks}
    if len(lengths) != 1 or min(lengths) < 4:
        raise EdgeSteerError("a base file of llama-perplexity needs chunks, all of one length of at least 4 tokens")
    length = lengths.pop()
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + np.array([length, vocabulary, len(chunks)], dtype="<i4").tobytes())
        file.write(np.array(chunks, dtype="<i4").tobytes())
        for pieces in rows:
            left = length - 1 - length // 2
            for piece in pieces:
                if piece.shape[1] != vocabulary:
                    raise EdgeSteerError(f"logits of {piece.shape[1]} tokens for a vocabulary of {vocabulary}")
                file.write(encode(piece[:left]).tobytes())
                left -= min(left, len(piece))
            if left:
                raise EdgeSteerError(f"a chunk of {length} tokens lacks {left} rows of logits")


def read(path: Path) -> tuple[npt.NDArray[np.int32], Iterator[Iterator[Logits]]]:
    """Tokens (chunks, n_ctx), and each chunk's log-probabilities (rows, vocabulary) in pieces.

    Errors: EdgeSteerError for a file that is no base file, or not whole.
    """
    with readable(path, "a base file of llama-perplexity").open("rb") as file:
        head = file.read(20)
        length, vocabulary, chunks = np.frombuffer(head[8:], "<i4") if len(head) == 20 else (0, 0, 0)
        rows = int(length) - 1 - int(length) // 2
        width = 2 * ((int(vocabulary) + 1) // 2) + 4
        size = 20 + 4 * int(chunks) * int(length) + 2 * int(chunks) * rows * width
        if head[:8] != MAGIC or min(length, vocabulary, chunks) < 1 or path.stat().st_size != size:
            raise EdgeSteerError(f"{path} is no whole base file of llama-perplexity")
        tokens = np.frombuffer(file.read(4 * int(chunks) * int(length)), "<i4").reshape(int(chunks), int(length))

    codes = np.memmap(path, "<u2", "r", 20 + tokens.nbytes, (int(chunks), rows, width))
    at_once = max(1, PIECE_BYTES // (4 * int(vocabulary)))

    def pieces(chunk: Codes) -> Iterator[Logits]:
        return (decode(chunk[first : first + at_once], int(vocabulary)) for first in range(0, rows, at_once))

    return tokens, map(pieces, codes)


def encode(logits: Logits) -> Codes:
    """Rows of the file, uint16 (rows, width), by the arithmetic of llama.cpp in float32."""
    count, vocabulary = logits.shape
    largest = logits.max(axis=1)
    smallest = np.maximum(logits.min(axis=1), largest - RANGE)
    total = (logsumexp(logits) - largest).astype(np.float32)
    scale = (largest - smallest) / STEPS
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    result = np.zeros((count, 2 * ((vocabulary + 1) // 2) + 4), dtype="<u2")
    result[:, :4] = np.stack([scale, smallest - largest - total], axis=1).astype("<f4").view("<u2")
    steps = inverse[:, None] * np.maximum(logits - smallest[:, None], 0)
    result[:, 4 : 4 + vocabulary] = np.rint(steps).astype(np.uint16)
    return result


def decode(codes: Codes, vocabulary: int) -> Logits:
    """Log-probabilities (rows, vocabulary) by the arithmetic of llama.cpp in float32."""
    scale, minimum = np.ascontiguousarray(codes[:, :4]).view("<f4").T[..., None]
    found = codes[:, 4 : 4 + vocabulary].astype(np.float32)
    found *= scale
    found += minimum
    return found
