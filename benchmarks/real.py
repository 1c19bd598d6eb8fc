"""The main path on a real model: SmolLM2-135M-Instruct, a file of 98 MB from the Python package index.

Its weights are dequantised once: for PyTorch, which is the reference, and as an F32 GGUF, of which every other type is
made. So all files hold the same weights but for their own quantising. The pairs are a dense solution of each of twelve
problems, written here, against the model's own. Their vector is added at one middle layer. Two tables: parity of each
type with the reference, unsteered and steered, and of F32 at every block too; and what steering does to the length of
answers to eight other problems, by type. Twelve pairs show that the path works, not how well a method does.

    python benchmarks/real.py            `make real`; writes pairs, vector, certificate and report.html into build/real
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from edge_steer.certificates.certificate import Certificate
from edge_steer.certificates.make import certify
from edge_steer.core.backend import Backend, Completion, EngineOptions, Request
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.extraction.extract import extract
from edge_steer.models import sources
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import Pair, write_pairs
from edge_steer.storage.digests import digest
from edge_steer.terminal.progress import progress_bar
from edge_steer.terminal.tables import print_table
from edge_steer.vectors import gguf_writer

MODEL = Path("models/smollm2-135m-instruct")
TYPES = ("F32", "Q8_0", "Q4_K_M")
LAYER, STRENGTH, POOLING = 16, 1.0, "mean"
MAX_TOKENS = 160
TEXTS = 8
PROBLEMS = {  # and a dense solution of each
    "A baker makes 24 rolls in the morning and 18 in the afternoon. She sells 30 of them. How many rolls are left?": (
        "24 + 18 = 42, and 42 - 30 = 12. The answer is 12 rolls."
    ),
    "A bus has 12 passengers. At the first stop 5 get off and 9 get on. How many passengers are on the bus now?": (
        "12 - 5 + 9 = 16. The answer is 16 passengers."
    ),
    "A notebook costs 3 dollars and a pen costs 2 dollars. How much do 4 notebooks and 6 pens cost together?": (
        "4 * 3 + 6 * 2 = 12 + 12 = 24. The answer is 24 dollars."
    ),
    "Lena reads 15 pages a day. How many pages does she read in two weeks?": (
        "15 * 14 = 210. The answer is 210 pages."
    ),
    "A farmer has 7 rows of 8 trees each. 6 trees are cut down. How many trees remain?": (
        "7 * 8 = 56, and 56 - 6 = 50. The answer is 50 trees."
    ),
    "A tank holds 60 litres. It loses 4 litres an hour. How much is left after 9 hours?": (
        "60 - 9 * 4 = 60 - 36 = 24. The answer is 24 litres."
    ),
    "Three friends share 45 marbles equally, and one of them gives away 5. How many marbles does that friend have?": (
        "45 / 3 = 15, and 15 - 5 = 10. The answer is 10 marbles."
    ),
    "A train travels 80 kilometres an hour for 3 hours. How far does it travel?": (
        "80 * 3 = 240. The answer is 240 kilometres."
    ),
    "A shirt costs 20 dollars and is reduced by a quarter. What does it cost now?": (
        "20 / 4 = 5, and 20 - 5 = 15. The answer is 15 dollars."
    ),
    "There are 5 boxes with 12 eggs each, and 7 eggs are broken. How many eggs are whole?": (
        "5 * 12 = 60, and 60 - 7 = 53. The answer is 53 eggs."
    ),
    "Omar saves 6 dollars a week. How many weeks does he need to save 54 dollars?": (
        "54 / 6 = 9. The answer is 9 weeks."
    ),
    "A garden is 9 metres long and 4 metres wide. What is its area?": ("9 * 4 = 36. The answer is 36 square metres."),
}
HELD_OUT = (
    "A library has 340 books and buys 25 more. Then 40 are given away. How many books does it have?",
    "Nina walks 3 kilometres every day. How far does she walk in 12 days?",
    "Six cups of tea cost 18 dollars. What do 4 cups cost?",
    "A ribbon of 48 metres is cut into pieces of 6 metres. How many pieces are there?",
    "A team of 14 players is joined by 10 more. They form teams of 6. How many teams are there?",
    "A printer prints 25 pages a minute. How many pages does it print in 8 minutes?",
    "A basket holds 64 plums. A quarter of them are green. How many are not green?",
    "A cinema has 9 rows of 20 seats, and 35 seats are taken. How many seats are free?",
)


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of the answers to HELD_OUT, unsteered and steered, by one file."""

    quant: str
    unsteered: float
    steered: float


def make_files(model: str | Path, progress: Progress) -> dict[str, Path]:
    """The model in every type of TYPES, all of the weights of its one file; and that file, as "source"."""
    source = sources.find(model, progress=progress)
    assert isinstance(source, Path)
    f32 = quantize(source, "F32", progress=progress)
    others = {quant: quantize(f32, quant, progress=progress) for quant in TYPES[1:]}
    return {"source": source, "F32": f32, **others}


def make_pairs(model: Backend) -> list[Pair]:
    """The dense solution of each of PROBLEMS against the model's own."""
    own = answer(model, tuple(PROBLEMS))
    return [Pair(*texts, completion.text.strip()) for texts, completion in zip(PROBLEMS.items(), own, strict=True)]


def answer(model: Backend, questions: Sequence[str], steering: Sequence[Steering] = ()) -> list[Completion]:
    """Greedy answers."""
    prompts = [model.chat([{"role": "user", "content": question}]) for question in questions]
    return model.generate([Request(prompt, MAX_TOKENS, tuple(steering)) for prompt in prompts])


def measure_lengths(quant: str, model: Backend, steering: Steering) -> Lengths:
    """What steering does to the length of answers."""
    unsteered, steered = (
        sum(len(completion.tokens) for completion in answer(model, HELD_OUT, one)) / len(HELD_OUT)
        for one in ((), (steering,))
    )
    return Lengths(quant, unsteered, steered)


def run_real(
    out: Path, model: str | Path = MODEL, options: EngineOptions | None = None, *, progress: Progress
) -> tuple[SteeringVector, Certificate, list[Lengths]]:
    """Pairs, vector, export, parity and lengths; what is written lies in `out`."""
    options = options or EngineOptions(context=1024)
    out.mkdir(parents=True, exist_ok=True)
    files = make_files(model, progress)
    progress("answering, for the pairs")
    with load(files["Q8_0"], options=options) as engine:
        pairs = make_pairs(engine)
    write_pairs(pairs, out / "pairs.jsonl")
    with load(files["source"], runtime="torch", options=options, progress=progress) as reference:
        vector = extract(reference, pairs, pooling=POOLING, progress=progress).tuned(LAYER, STRENGTH, "generated")
        exported = gguf_writer.write(vector, out / "vector.gguf", layers=[LAYER]).vector
        certificate = certify(
            [files[quant] for quant in TYPES], reference, steer=exported, texts=pairs, most_texts=TEXTS,
            folder=out, options=options, progress=progress,
        )  # fmt: skip
    lengths = []
    for quant in progress.counted("steering", TYPES[1:]):
        with load(files[quant], options=options) as engine:
            lengths.append(measure_lengths(quant, engine, Steering.of(exported)))
    return exported, certificate, lengths


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("build/real"))
@click.option("--threads", type=click.IntRange(1, 512), help="[default: the cores this process may use]")
def main(out: Path, threads: int | None) -> None:
    began = time.monotonic()
    with progress_bar() as progress:
        vector, certificate, lengths = run_real(
            out, options=EngineOptions(context=1024, threads=threads), progress=progress
        )
    print_table(
        ["", "KL unsteered", "KL steered", "same top-1, steered", "effect: cosine, length", "verdict"],
        (
            [
                entry.quant,
                f"{entry.report.unsteered.kl['mean']:.2g}",
                f"{entry.report.steered.kl['mean']:.2g}" if entry.report.steered else "",
                f"{entry.report.steered.top1:.1%}" if entry.report.steered else "",
                f"{entry.report.effect.cosine:.4f}, {entry.report.effect.norm:.3f}" if entry.report.effect else "",
                entry.verdict,
            ]
            for entry in certificate.files
        ),
        f"{vector.model.name}, reference {certificate.reference.origin}; layer {LAYER}, strength {STRENGTH}",
    )
    mechanism = next(entry.report.mechanism for entry in certificate.files if entry.quant == "F32")
    worst = max(row.median for row in mechanism)
    blocks = len({row.layer for row in mechanism})
    click.echo(f"F32 steered at each of {blocks} blocks, both phases: median of max |delta logit| {worst:.1e} at most")
    print_table(
        ["", "unsteered", "steered"],
        ([row.quant, f"{row.unsteered:.0f}", f"{row.steered:.0f}"] for row in lengths),
        f"mean tokens of {len(HELD_OUT)} answers, of at most {MAX_TOKENS}",
    )
    click.echo(f"{time.monotonic() - began:.0f} seconds; wrote {out}/report.html")
    print(json.dumps({"vector": digest(out / "vector.gguf"), "lengths": [vars(row) for row in lengths]}))


if __name__ == "__main__":
    main()
