"""The built-in rules of rewriting on a real model: how many rewrites are good pairs, and how dense they are.

    edge-steer pairs generate models/qwen2.5-coder-0.5b-instruct --task gsm8k --solutions 8 -n 320 -o solutions.jsonl
    python benchmarks/rewriting_rules.py solutions.jsonl models/qwen2.5-coder-0.5b-instruct

`edge-steer serve` is the endpoint: the model rewrites its own solutions, at temperature 0, by each set of rules. A
rewrite is kept if it passes `pairs check`. Figures are means over the rewrites that are no copy of the solution. The
rewrites are kept in --out, and a stopped run goes on. Prints a table, the reasons to drop and a JSON line.
"""

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from serve import running

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.models.load import load
from edge_steer.pairs.checks import CheckReport, check_pairs
from edge_steer.pairs.endpoint import Endpoint
from edge_steer.pairs.likelihood import OWN, REWRITE
from edge_steer.pairs.rewrite import dense_pairs, rewrite_solutions
from edge_steer.pairs.rules import BUILT_IN
from edge_steer.pairs.solutions import Solution, read_chosen_solutions
from edge_steer.terminal.progress import progress_bar
from edge_steer.terminal.tables import print_table

MAX_TOKENS = 640
PORT = 8077  # part of what the rewrites are known to come from


@dataclass(frozen=True)
class RulesRow:
    """What became of the solutions by one set of rules. right, denser: of the rewrites; passing: every check.

    steps, density, nll: of the own solutions and of their rewrites; tokens per step, nats per token.
    """

    rules: str
    solutions: int
    rewrites: int
    right: int
    denser: int
    passing: int
    steps: tuple[float, float]
    density: tuple[float, float]
    nll: tuple[float, float]


@click.command(help=__doc__)
@click.argument("solutions", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/rules"), show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(solutions: Path, model: str, out: Path, threads: int) -> None:
    chosen = read_chosen_solutions(solutions)
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "edge_steer", "serve", model, "--port", str(PORT), "--threads", str(threads),
               "--alias", "rewriter", "--context", "2048", "--parallel", "8"]  # fmt: skip
    with progress_bar() as progress:
        with running(command) as url:
            endpoint = Endpoint("rewriter", f"{url}/v1", MAX_TOKENS, temperature=0, timeout=1800)
            contrasts = {
                name: dense_pairs(
                    chosen,
                    rewrite_solutions(chosen, endpoint, out / f"{name}.jsonl", rules=rules, progress=progress).rewrites,
                )
                for name, rules in BUILT_IN.items()
            }
        with load(model, options=EngineOptions(threads=threads), progress=progress) as backend:
            reports = {
                name: check_pairs(contrast.pairs, backend=backend, progress=progress)
                for name, contrast in contrasts.items()
            }
    rows = [row_of(name, chosen, report) for name, report in reports.items()]
    print_table(
        ["rules", "solutions", "rewrites", "right", "denser", "kept", "steps", "tokens a step", "NLL"],
        [
            [row.rules, *map(str, (row.solutions, row.rewrites, row.right, row.denser, row.passing)),
             *("{:.1f} -> {:.1f}".format(*means) for means in (row.steps, row.density)),
             "{:.3f} -> {:.3f}".format(*row.nll)]
            for row in rows
        ],
        title="own solutions -> their rewrites",
    )  # fmt: skip
    for name, report in reports.items():
        kinds = Counter(reason.partition(":")[0] for reasons in report.reasons for reason in reasons)
        without = Counter(line.partition(": ")[2] for line in contrasts[name].left_out)
        print(f"{name}: " + "; ".join(f"{count} {kind}" for kind, count in (without + kinds).most_common()))
    print(json.dumps([asdict(row) for row in rows]))


def row_of(name: str, chosen: list[Solution], report: CheckReport) -> RulesRow:
    checks, means = report.checks, report.means
    nll = {one.source: one.mean for one in report.likelihoods}
    return RulesRow(
        rules=name,
        solutions=len(chosen),
        rewrites=len(checks),
        right=sum(check.positive_right for check in checks),
        denser=sum(check.density_ratio > 1 for check in checks),
        passing=len(report.passing),
        steps=means["steps"],
        density=means["density"],
        nll=(nll[OWN], nll[REWRITE]),
    )


if __name__ == "__main__":
    main()
