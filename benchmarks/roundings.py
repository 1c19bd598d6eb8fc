"""How large the largest difference of the mechanism is, in units of the reference's own rounding, text by text.

    python benchmarks/roundings.py MODEL VECTOR:STRENGTH PAIRS.jsonl [--texts 6]

For each text the mechanism is checked at every block, phase and sign, as in a certificate of an F32 file; shown are the
largest max|delta logit|, what float32 and float64 differ by in the reference, and the ratio of the two.
"""

from pathlib import Path

import click

from edge_steer.core.backend import EngineOptions
from edge_steer.core.steering import Steering
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import read_pairs
from edge_steer.parity.baseline import LiveReference
from edge_steer.parity.findings import largest_in_roundings
from edge_steer.parity.measure import measure_mechanism
from edge_steer.parity.mechanism import EXACT, options_for
from edge_steer.parity.texts import tokenise_texts
from edge_steer.terminal.progress import progress_bar
from edge_steer.terminal.tables import print_table
from edge_steer.vectors.read import load as load_vector
from edge_steer.vectors.steer import split_strength


@click.command(help=__doc__)
@click.argument("model")
@click.argument("vector")
@click.argument("pairs", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--texts", default=6, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(model: str, vector: str, pairs: Path, texts: int, threads: int) -> None:
    name, strength = split_strength(vector)
    steering = [Steering.of(load_vector(name), strength)]
    options = options_for(EXACT, EngineOptions(context=1024, threads=threads))
    f32, rows = quantize(model, EXACT, threads=threads), []
    with (
        progress_bar() as progress,
        load(f32, runtime="torch", options=options) as reference,
        load(f32, options=options) as engine,
    ):
        for number, text in enumerate(tokenise_texts(read_pairs(pairs)[:texts], reference)):
            baseline = LiveReference(reference, [text], [text], steering)
            cases = measure_mechanism(baseline, engine, steering, progress=progress)
            largest, unit = max(case.max for case in cases), cases[0].rounding
            rows.append([str(number), f"{largest:.1e}", f"{unit:.1e}", f"{largest_in_roundings(cases):.1f}"])
    print_table(["text", "largest max|delta logit|", "rounding", "ratio"], rows, f"{model}, {len(cases)} cases a text")


if __name__ == "__main__":
    main()
