"""Which tokens of an answer make its state."""

import re
from collections.abc import Callable

from edge_steer.core.errors import RequestError, VectorError

Pooling = Callable[[int, int], tuple[int, int]]  # tokens of the answer, k -> the first averaged, the one after the last
POOLINGS: dict[str, Pooling] = {  # the number after a colon in the name is k
    "last": lambda length, k: (length - k, length),
    "mean": lambda length, k: (0, length),
    "token": lambda length, k: (k, k + 1) if k >= 0 else (length + k, length + k + 1),
}
POOLING_NAMES = "last, last:K, mean, token:I"


def pooling_named(name: str) -> Callable[[int], tuple[int, int]]:
    """What "last", "last:K" (the K last tokens), "mean" or "token:I" (from the end if negative) averages.

    The function takes the number of an answer's tokens, gives the first averaged and the one after the last, and
    raises RequestError for an answer that is too short. Errors: VectorError for an unknown pooling.
    """
    kind, _, number = name.partition(":")
    with_number = {"last": r"[1-9]\d*", "token": r"0|-?[1-9]\d*"}
    plain = name in ("last", "mean")
    if not plain and not (kind in with_number and re.fullmatch(with_number[kind], number)):
        raise VectorError(f"no pooling {name!r}; poolings are {POOLING_NAMES}")
    k = int(number or 1)

    def span(length: int) -> tuple[int, int]:
        first, end = POOLINGS[kind](length, k)
        if not 0 <= first < end <= length:
            raise RequestError(f"an answer of {length} tokens is too short for pooling {name}")
        return first, end

    return span
