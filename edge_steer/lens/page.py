"""A reading as a page of HTML, one file that loads nothing else.

Takes a Reading with its topics, or a ContextReading; gives HTML in which whatever a model or a name holds is escaped.
The texts are in reading.html.j2 and context.html.j2.
"""

import math
from collections.abc import Sequence
from functools import cache

import jinja2

from edge_steer.lens.in_context import ContextReading
from edge_steer.lens.reading import LayerReading, Reading
from edge_steer.lens.topics import LayerTopics
from edge_steer.lens.vocabulary import quoted


def reading_page(reading: Reading, topics: Sequence[LayerTopics] = ()) -> str:
    """The page of a vector read layer by layer. topics: of its layers, where they were asked for."""
    return (
        _environment()
        .get_template("reading.html.j2")
        .render(
            reading=reading,
            topics={one.layer: one for one in topics},
            geometry=reading.geometry,
            longest=max(reading.geometry.norms),
        )
    )


def context_page(reading: ContextReading) -> str:
    """The page of what a steering changes in a prompt: a table of layers by positions."""
    largest = max(cell.kl for row in reading.cells for cell in row)
    last_first = reversed(list(zip(reading.layers, reading.cells, strict=True)))
    return (
        _environment()
        .get_template("context.html.j2")
        .render(
            reading=reading,
            rows=[(layer, row, [_shade(cell.kl, largest) for cell in row]) for layer, row in last_first],
            largest=largest,
        )
    )


def _shade(kl: float, largest: float) -> int:
    """How dark a cell is, in percent: the logarithm of its KL over four decades below the largest."""
    return round(100 * max(0.0, 1 + math.log10(kl / largest) / 4)) if kl > 0 else 0


def _scale(layer: LayerReading) -> float:
    """What the bars of a layer are measured by."""
    return max(layer.null.largest if layer.null else 0.0, *(abs(one.score) for one in (*layer.top, *layer.bottom)))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edge_steer.lens", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"quoted": quoted, "scale": _scale, "number": lambda value: f"{value:.3g}"}
    return environment
