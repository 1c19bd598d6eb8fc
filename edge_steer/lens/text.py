"""A reading as text: a line for each token, a file for each layer, and one table of all.

Takes a Reading, gives text that a person, a shell's tools or a spreadsheet read.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.lens.reading import LayerReading, Reading, TokenScore
from edge_steer.lens.vocabulary import quoted
from edge_steer.storage.files import write_json, write_text

JSON, CSV = "lens.json", "lens.csv"
COLUMNS = ("layer", "norm", "end", "rank", "token", "text", "score", "random", "special")


def layer_text(reading: Reading, layer: LayerReading) -> str:
    """A layer in lines: what it is, then its top and its bottom tokens, each as a JSON string with its score."""
    if layer.null is None:
        return f"layer {layer.layer}: zero, it says nothing\n"
    null, count = layer.null, reading.null.directions
    line = f"{reading.null.quantile:.0%} of {count} random directions, seed {reading.null.seed}"
    head = [
        f"layer {layer.layer}, norm {layer.norm:.4g}, {reading.score}",
        f"largest score of {line}: {null.largest:.4g}; their {len(layer.top)}th largest: {null.kth:.4g}",
    ]
    return "\n".join([*head, "", "top", *_lines(layer.top), "", "bottom", *_lines(layer.bottom), ""])


def reading_csv(reading: Reading) -> str:
    """A row for each token under COLUMNS; text as a JSON string, random: the largest score of random directions."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for layer in reading.layers:
        for end, tokens in (("top", layer.top), ("bottom", layer.bottom)):
            for rank, one in enumerate(tokens, start=1):
                random = layer.null and f"{layer.null.largest:.6g}"
                about = (layer.layer, f"{layer.norm:.6g}", end, rank)
                writer.writerow((*about, one.token, quoted(one.text), f"{one.score:.6g}", random, int(one.special)))
    return table.getvalue()


def write_texts(folder: str | Path, reading: Reading) -> list[Path]:
    """lens.json, lens.csv and layer-NN.txt for each layer in `folder`, which is made if need be; their paths.

    Errors: EdgeSteerError for a folder that cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeSteerError(f"cannot make {folder}: {error.strerror}") from None
    texts = {folder / f"layer-{layer.layer:02}.txt": layer_text(reading, layer) for layer in reading.layers}
    texts = {folder / CSV: reading_csv(reading), **texts}
    return [write_json(folder / JSON, reading.to_json()), *(write_text(path, text) for path, text in texts.items())]


def _lines(tokens: Iterable[TokenScore]) -> list[str]:
    return [f"{one.score:+.4f}  {quoted(one.text)}{'  (special)' if one.special else ''}" for one in tokens]
