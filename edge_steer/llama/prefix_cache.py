"""What each sequence of a context has in its KV cache, and what of it another prompt can use.

A KV cache belongs to the tokens, the steering and the adapters that computed it. Takes those, gives a key for each
position that stands for all of them; a prompt whose keys begin like those of another sequence takes that sequence's
cache. It decodes nothing.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from edge_steer.core.steering import Offsets, Steering
from edge_steer.core.streaming import common_prefix
from edge_steer.llama.context import LlamaContext
from edge_steer.llama.model import Adapters

CacheKeys = npt.NDArray[np.int64]
NO_KEYS: CacheKeys = np.empty(0, dtype=np.int64)
WORTH_COPYING = 16  # tokens; a shorter common beginning is computed again


@dataclass(frozen=True, eq=False)
class LiveSteering:
    """What a steering adds, and the number that stands for it in cache keys.

    offsets: None is nothing, under adapters. unsteered: what stands for the positions that it leaves alone.
    """

    offsets: Offsets | None
    number: int
    unsteered: "LiveSteering | None" = None


class LiveSteerings:
    """One LiveSteering for equal steerings, for as long as a request or a cache entry holds it. Any thread may ask."""

    def __init__(self, offsets: Callable[[Sequence[Steering]], Offsets | None], own: Adapters = ()) -> None:
        """offsets: see Runtime.offsets. own: the adapters of who names none."""
        self._offsets, self._own = offsets, own
        self._live: WeakValueDictionary[tuple[tuple[Steering, ...], Adapters], LiveSteering] = WeakValueDictionary()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._live)

    def get(self, steering: Sequence[Steering], adapters: Adapters | None = None) -> LiveSteering | None:
        """None where nothing is added under the model's own adapters. adapters: None is those.

        Errors: VectorError for a steering that does not fit the model.
        """
        key = tuple(steering), self._own if adapters is None else adapters
        with self._lock:
            return self._get(key)

    def _get(self, key: tuple[tuple[Steering, ...], Adapters]) -> LiveSteering | None:
        if (live := self._live.get(key)) is None:
            steering, adapters = key
            offsets = self._offsets(steering)
            unsteered = self._get(((), adapters)) if steering and adapters != self._own else None
            if offsets is None and (unsteered or adapters == self._own):
                return unsteered
            live = self._live[key] = LiveSteering(offsets, next(self._numbers), unsteered)
        return live


def cache_keys(tokens: Sequence[int], prompt: int, steering: LiveSteering | None) -> CacheKeys:
    """A number for each position that stands for its token, its steering and its adapters.

    Two sequences have the same KV cache as far as their keys agree from the first position on.
    """
    keys = np.array(tokens, dtype=np.int64)
    if steering:
        steered = steering.offsets.steered(tokens, 0, prompt) if steering.offsets else True
        other = steering.unsteered.number if steering.unsteered else 0
        keys += np.where(steered, steering.number, other) << 32
    return keys


@dataclass
class Entry:
    """What one sequence has cached. The steering is held, so that its number stays its own. used: when, by count.

    raw: the keys as bytes, which Python compares many times faster than numpy.
    """

    keys: CacheKeys = field(default_factory=lambda: NO_KEYS)
    steering: LiveSteering | None = None
    used: int = 0
    raw: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.raw = self.keys.tobytes()


class PrefixCache:
    """The cached beginnings of all sequences of a context."""

    def __init__(self, context: LlamaContext) -> None:
        self.context = context
        self._entries = [Entry() for _ in range(context.sequences)]
        self._can_trim = True
        self._uses = itertools.count(1)

    def clear(self) -> None:
        self._entries = [Entry() for _ in self._entries]

    def moved_to(self, context: LlamaContext) -> "PrefixCache":
        """The same sequences with what they have cached, in another context, which must not have fewer."""
        cache = PrefixCache(context)
        cache._entries[: len(self._entries)] = self._entries
        return cache

    def cached(self) -> list[int]:
        """The sequences that have anything cached."""
        return [sequence for sequence, entry in enumerate(self._entries) if len(entry.keys)]

    def donor(self, keys: CacheKeys, sequence: int) -> tuple[int, int]:
        """The sequence that has most of a prompt, and how much; `sequence` itself unless copying is worth it."""
        if not self._can_trim:
            return sequence, 0
        own = common_prefix(self._entries[sequence].keys, keys)
        start = keys[:WORTH_COPYING].tobytes()
        worth = [other for other, entry in enumerate(self._entries) if entry.raw.startswith(start)]
        common = {other: common_prefix(self._entries[other].keys, keys) for other in worth}
        best = max(common, key=lambda other: common[other], default=sequence)
        if common.get(best, 0) >= max(WORTH_COPYING, own + 1):
            return best, common[best]
        return sequence, own

    def place(self, keys: CacheKeys) -> int:
        """The sequence where a prompt that runs alone goes on without a copy, or overwrites what is least worth."""
        donor, common = self.donor(keys, 0)
        if common and len(self._entries[donor].keys) - common < WORTH_COPYING:
            return donor
        values = self._values()
        return values.index(min(values))

    def begin(self, sequence: int, donor: int, common: int, steering: LiveSteering | None) -> int:
        """Give the sequence the donor's first `common` positions and nothing else; how many it has then."""
        keys = self._entries[donor].keys
        if donor != sequence:
            self.context.copy(donor, sequence)
        if not self.context.forget(sequence, common):
            self._can_trim, common = False, 0
            self.context.forget(sequence)
        self.hold(sequence, keys[:common], steering)
        return common

    def hold(self, sequence: int, keys: CacheKeys, steering: LiveSteering | None) -> None:
        """The sequence has computed these positions."""
        self._entries[sequence] = Entry(keys, steering, next(self._uses))

    def move(self, source: int, target: int) -> None:
        """Make all that is cached for `source` the cache of `target`."""
        if source != target:
            self.context.copy(source, target)
            self._entries[target] = self._entries[source]

    def rescue(self, sequence: int, stays: int, idle: Iterable[int]) -> None:
        """Copy what the sequence has cached, before it is overwritten behind the first `stays` positions, to the idle
        sequence that loses least by it."""
        if len(self._entries[sequence].keys) - stays < WORTH_COPYING:
            return
        values = self._values()
        victim = min(idle, key=values.__getitem__, default=sequence)
        if values[victim] < values[sequence]:
            self.move(sequence, victim)

    def _values(self) -> list[int]:
        """When each sequence was last used; 0 if another has the same cached."""
        raws, values = [entry.raw for entry in self._entries], [entry.used for entry in self._entries]
        ranked = sorted(range(len(raws)), key=raws.__getitem__)
        for one, following in itertools.pairwise(ranked):  # what begins like it comes right behind it
            if raws[following].startswith(raws[one]):
                values[one] = 0
            if raws[following] == raws[one]:
                values[following] = 0
        return values
