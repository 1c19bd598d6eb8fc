"""`edge-steer pairs contrast`: pairs of other contrasts than dense rewrites, and controls.

Takes click's values, calls the library, prints what it leaves out.
"""

from pathlib import Path

import click

from edge_steer.commands.pairs import list_left_out
from edge_steer.terminal.parameters import FILE

KINDS = [
    "in-family", "own-samples", "opposites", "letters", "reflection", "thoughts", "personas", "texts", "line-breaks",
    "compressions",
]  # fmt: skip


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the pairs (.jsonl).")
@click.option("--positive", default="", help="personas: the persona to steer towards.")
@click.option("--negative", default="", help="personas: the persona to leave.")
@click.option("--template", help="personas: the user's turn, with {persona}.  [default: Act as if you're {persona}.]")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="compressions: of the sentences that are left out."
)
@click.option("--beginnings", is_flag=True, help="personas: also every beginning of a text, word by word.")
def contrast(
    kind: str,
    files: tuple[Path, ...],
    output: Path,
    positive: str,
    negative: str,
    template: str | None,
    seed: int,
    beginnings: bool,
) -> None:
    """Make pairs of another contrast from FILES.

    \b
    in-family     a larger model's SOLUTIONS, the target's SOLUTIONS (InFamilySteer)
    own-samples   SOLUTIONS of --style dense, the target's SOLUTIONS (dense pairs without a teacher)
    opposites     SOLUTIONS under one system message, SOLUTIONS under its opposite (CAA)
    letters       QUESTIONS with the matching and the other answer's letter (CAA)
    reflection    the target's SOLUTIONS, steered away from reflecting (after SEAL)
    thoughts      the target's SOLUTIONS, all their thoughts (SEAL; extract with --method class_means)
    personas      TEXTS that begin an answer, one a line, under two personas (repeng)
    texts         POSITIVE and NEGATIVE texts, one a line (llama-cvector-generator)
    line-breaks   the target's SOLUTIONS, their line breaks turned into spaces (control)
    compressions  the target's SOLUTIONS without some sentences (control)
    """
    from edge_steer.pairs.contrasts import CONTRASTS, PERSONA, Sources
    from edge_steer.pairs.pair import write_pairs

    if kind != "personas" and (positive or negative or template or beginnings):
        raise click.UsageError("--positive, --negative, --template and --beginnings belong to personas")
    contrasted = CONTRASTS[kind](Sources(files, (positive, negative), template or PERSONA, beginnings, seed))
    list_left_out(contrasted.left_out)
    write_pairs(contrasted.pairs, output)
    count = len(contrasted.pairs)
    click.echo(f"wrote {output}: {count} pairs; next: edge-steer extract MODEL {output} -o vector.safetensors")
