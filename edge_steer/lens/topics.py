"""The topics of each layer's tokens, by a language model with the prompt of Bias-Only Adaptation (appendix F).

Takes a Reading and a Rewriter: an endpoint, or a model on this machine. It sends tokens and scores, nothing else. Each
answer is on the disk before the next is counted; what a file has already is not asked for again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.lens.reading import LayerReading, Reading
from edge_steer.lens.vocabulary import quoted
from edge_steer.pairs.endpoint import Reply
from edge_steer.pairs.rewrite import END_OF_THINKING, Rewriter
from edge_steer.storage.records import Store

FORMAT = "edge-steer topics 1"
DEFAULT_MODEL = "o3"  # the paper's
PROMPT = """You will be given a list of tokens together with a score.
You should translate all non-english tokens and suggest the main topics
that unite the biggest subsets of tokens in the list.

"""


@dataclass(frozen=True)
class LayerTopics:
    """What a model says of a layer's tokens. problem: why it says nothing, else "". digest: of what it was asked."""

    layer: int
    digest: str
    text: str
    problem: str
    model: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "LayerTopics":
        """From a record of the store. Errors: EdgeSteerError for anything else."""
        try:
            return cls(**record)
        except TypeError:
            raise EdgeSteerError(f"{str(dict(record))[:80]} are no topics") from None


def prompt_of(layer: LayerReading) -> str:
    """All that is sent for a layer: the paper's words, then its top tokens with their scores."""
    return PROMPT + "\n".join(f"{quoted(one.text)} {one.score:.4f}" for one in layer.top)


def name_topics(
    reading: Reading, rewriter: Rewriter, path: str | Path, *, progress: Progress = SILENT
) -> tuple[LayerTopics, ...]:
    """The topics of each layer that says something, kept in the file `path`; those that met a problem are asked again.

    Errors: as of the rewriter; EdgeSteerError for a file of another rewriter or a zero reading.
    """
    layers = [layer for layer in reading.layers if layer.top]
    digests = {layer.layer: _digest(prompt_of(layer)) for layer in layers}
    with Store.open(Path(path), {"format": FORMAT, "model": {**rewriter.identity}}) as store:
        known = _answered(store, digests)
        missing = [layer for layer in layers if layer.layer not in known]
        progress("naming topics", 0, len(missing))
        done = 0

        def keep(index: int, reply: Reply) -> None:
            nonlocal done
            layer = missing[index].layer
            text = reply.text.rpartition(END_OF_THINKING)[2].strip()
            store.append(asdict(LayerTopics(layer, digests[layer], text, reply.problem, reply.model)))
            done += 1
            progress("naming topics", done, len(missing))

        rewriter.ask([prompt_of(layer) for layer in missing], keep)
        last = {(one.layer, one.digest): one for one in map(LayerTopics.of, store.records)}
    return tuple(last[layer, digest] for layer, digest in digests.items() if (layer, digest) in last)


def _answered(store: Store, digests: Mapping[int, str]) -> Sequence[int]:
    """The layers whose tokens the file has topics of."""
    topics = map(LayerTopics.of, store.records)
    return [one.layer for one in topics if not one.problem and digests.get(one.layer) == one.digest]


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
