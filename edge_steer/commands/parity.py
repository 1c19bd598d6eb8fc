"""The command parity: GGUF files against their reference, with a certificate; and a certificate run again.

Takes click's strings, calls certify or check_again, prints figures and verdicts.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.terminal.options import (
    FILE,
    FOLDER,
    MODEL,
    TASK,
    VECTOR,
    SteeringChoice,
    TaskChoice,
    asking_options,
    engine_options,
    json_option,
    revision_option,
    steering_from,
    steering_options,
)
from edge_steer.terminal.progress import progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.certificates.certificate import Certificate
    from edge_steer.certificates.files import SteeringFile
    from edge_steer.certificates.recheck import RecheckedFigure
    from edge_steer.certificates.served import ServedReport
    from edge_steer.core.backend import EngineOptions
    from edge_steer.core.progress import Progress
    from edge_steer.core.stats import Interval
    from edge_steer.parity.findings import Finding, Verdict

ADDRESS = ("http://", "https://")


@dataclass(frozen=True)
class ParityChoice:
    """What a user typed beside engine and steering."""

    files: tuple[str, ...]
    quants: str | None
    reference: str | None
    revision: str | None
    text_file: Path | None
    task: str | None
    problems: int
    doses: str
    texts: int
    reference_vector: str | None
    tolerance: float | None
    allow: tuple[str, ...]
    out: Path | None
    save_reference: Path | None
    saved_reference: Path | None
    request: str | None

    @property
    def server(self) -> str | None:
        """The address of a running server, if that is what is compared."""
        return next((file for file in self.files if file.startswith(ADDRESS)), None)


@click.command()
@click.argument("files", metavar="MODEL...", nargs=-1, type=MODEL)
@click.option("--quants", help="Types to make of the one MODEL, as F16,Q8_0,Q4_K_M.  [default: MODEL as it is]")
@click.option("--reference", type=MODEL, help="The same model's Hugging Face folder or hub id.")
@revision_option
@click.option("--text-file", type=FILE, help="Pairs (.jsonl) or plain text, one a line, to compare on.")
@click.option("--texts", type=click.IntRange(1), default=16, show_default=True, help="How many texts to compare on.")
@click.option("--task", type=TASK, help="Compare on the reference's own answers to a task, and on behaviour.")
@click.option("--problems", type=click.IntRange(1), default=100, show_default=True, help="Problems of the task.")
@click.option("--doses", default="-0.5,0,0.5,1", show_default=True,
              help="Factors on the strength at which the task is answered; 0 and 1 among them.")  # fmt: skip
@steering_options
@click.option("--reference-vector", type=VECTOR, help="What steers the reference.  [default: --vector]")
@click.option("--tolerance", type=click.FloatRange(0, min_open=True), help="Mean KL allowed.  [default: by quant]")
@click.option("--allow", multiple=True, metavar="NAME=VALUE",
              help="Another tolerance: kl, kl_ratio, cosine, norm or accuracy; repeatable.")  # fmt: skip
@click.option("-o", "--out", type=FOLDER, help="Write certificate.json, report.html, texts and rows here.")
@click.option("--save-reference", type=FILE, help="Save what the reference says, for --saved-reference elsewhere.")
@click.option("--saved-reference", type=FILE, help="Compare with a saved reference in place of --reference.")
@click.option("--request", metavar="JSON",
              help='How a server is asked to steer, as {"steering": "2 dense"}.  [default: as it does]')  # fmt: skip
@click.option("--check", "checked", type=FILE, help="Run a certificate again and compare; status 1 if it differs.")
@json_option
@asking_options
@engine_options
def parity(
    checked: Path | None,
    as_json: bool,
    engine: "EngineOptions",
    steering_choice: SteeringChoice,
    task_choice: TaskChoice,
    **values: Any,
) -> None:
    """Compare steered MODELs (GGUF files, hub ids or folders) with their reference in PyTorch.

    Each is compared on the reference's texts, unsteered and steered, and has a verdict: pass, fail (status 1), or not
    enough data. An F32 file is also checked for the mechanism: every block, both phases, with F32 KV and no flash
    attention. With --out a certificate is written, which --check runs again.

    A MODEL may be the address of a running server, as http://localhost:8080; its key is in $EDGE_STEER_API_KEY.
    """
    choice = ParityChoice(**values)
    if checked:
        with progress_bar() as progress:
            figures = _check_again(checked, choice, steering_choice, engine, progress)
        print_again(figures, as_json)
        sys.exit(not all(figure.holds for figure in figures))
    _check_choice(choice)
    if choice.server:
        with progress_bar() as progress:
            report = _check_served(choice.server, choice, steering_choice, engine, progress)
        if as_json:
            click.echo(json.dumps(report.to_json()))
        else:
            print_served(report)
        sys.exit(report.verdict == "fail")
    with progress_bar() as progress:
        certificate = _certify(choice, steering_choice, task_choice, engine, progress)
    if certificate is None:
        return
    if as_json:
        click.echo(json.dumps(certificate.to_json()))
    else:
        print_certificate(certificate)
    sys.exit(certificate.verdict == "fail")


def _check_choice(choice: ParityChoice) -> None:
    """Errors: UsageError for options that do not go together."""
    if bool(choice.reference) == bool(choice.saved_reference):
        raise click.UsageError("give a --reference, or a --saved-reference made with --save-reference")
    if choice.reference and bool(choice.text_file) == bool(choice.task):
        raise click.UsageError("name a --text-file or a --task to compare on")
    if choice.saved_reference and choice.text_file:
        raise click.UsageError("a --saved-reference holds its own texts; leave out --text-file")
    if choice.task and not choice.out:
        raise click.UsageError("--task keeps its answers on the disk; name a folder with --out")
    if not choice.files and not choice.save_reference:
        raise click.UsageError("name a MODEL to compare")
    if len(choice.files) > 1 and choice.quants:
        raise click.UsageError("--quants are made of one MODEL; name several without it")
    if choice.request and not choice.server:
        raise click.UsageError("--request is what a server is asked; name its address")
    if choice.server and (len(choice.files) > 1 or not choice.reference or not choice.text_file or choice.out):
        raise click.UsageError("a server is compared alone, with a --reference, on a --text-file, without --out")


def _certify(
    choice: ParityChoice,
    steering_choice: SteeringChoice,
    task_choice: TaskChoice,
    engine: "EngineOptions",
    progress: "Progress",
) -> "Certificate | None":
    """The certificate; None if the reference was only saved."""
    from edge_steer.certificates.make import certify
    from edge_steer.certificates.reference_side import opened_reference, save_reference

    doses, tolerances = _doses(choice.doses), _tolerances(choice)
    task = task_choice.load(choice.task, choice.problems) if choice.task else None
    steer = _steering_files(steering_choice)
    theirs = choice.reference_vector
    reference_steer = _steering_files(replace(steering_choice, vectors=(theirs,))) if theirs else None
    saved, texts = choice.saved_reference, choice.text_file
    with ExitStack() as stack:
        reference: Any = choice.reference
        if choice.save_reference:
            reference = stack.enter_context(opened_reference(reference, choice.revision, engine, progress))
            save_reference(
                choice.save_reference, reference, steer=[one.steering for one in reference_steer or steer],
                texts=texts, task=task, doses=doses, most_texts=choice.texts, folder=choice.out,
                source=choice.reference, progress=progress,
            )  # fmt: skip
            say(f"wrote {choice.save_reference}")
            saved, texts = choice.save_reference, None
        if not choice.files:
            return None
        certificate = certify(
            choice.files, reference, steer=steer, reference_steer=reference_steer, texts=texts, task=task,
            doses=doses, most_texts=choice.texts, folder=choice.out, saved_reference=saved,
            quants=choice.quants.split(",") if choice.quants else (), revision=choice.revision,
            tolerances=tolerances, options=engine, progress=progress,
        )  # fmt: skip
    if choice.saved_reference and certificate.reference_steering != certificate.steering:
        say("the saved reference is steered otherwise than the files; the certificate says how")
    if choice.out:
        say(f"wrote {choice.out / 'certificate.json'} and report.html")
    return certificate


def _check_again(
    checked: Path,
    choice: ParityChoice,
    steering_choice: SteeringChoice,
    engine: "EngineOptions",
    progress: "Progress",
) -> "list[RecheckedFigure]":
    from edge_steer.certificates.recheck import check_again
    from edge_steer.vectors.steer import split_strength

    theirs = (choice.reference_vector,) if choice.reference_vector else ()
    return check_again(
        checked,
        choice.files,
        reference=choice.reference,
        vectors=[split_strength(source)[0] for source in steering_choice.vectors],
        reference_vectors=[split_strength(source)[0] for source in theirs],
        revision=choice.revision,
        options=engine,
        progress=progress,
    )


def _check_served(
    url: str, choice: ParityChoice, steering_choice: SteeringChoice, engine: "EngineOptions", progress: "Progress"
) -> "ServedReport":
    from edge_steer.certificates.served import check_served

    assert choice.reference
    assert choice.text_file
    try:
        request = json.loads(choice.request or "{}")
    except ValueError:
        request = None
    if not isinstance(request, dict):
        raise click.UsageError(f"--request {choice.request!r} is no JSON object")
    return check_served(
        url, choice.reference, choice.text_file, steering_from(steering_choice), request=request,
        most_texts=choice.texts, quant=choice.quants, revision=choice.revision, tolerances=_tolerances(choice),
        options=engine, progress=progress,
    )  # fmt: skip


def _steering_files(choice: SteeringChoice) -> "list[SteeringFile]":
    from edge_steer.certificates.files import SteeringFile
    from edge_steer.vectors.steer import split_strength

    paths = [split_strength(source)[0] for source in choice.vectors]
    return [SteeringFile(*pair) for pair in zip(steering_from(choice), paths, strict=True)]


def _doses(text: str) -> list[float]:
    try:
        doses = [float(dose) for dose in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--doses {text!r}: write numbers, as -0.5,0,1") from None
    if not {0.0, 1.0} <= {*doses}:
        raise click.UsageError(f"--doses {text!r}: 0 and 1 must be among them; their texts are compared on")
    return doses


def _tolerances(choice: ParityChoice) -> dict[str, float]:
    tolerances = {} if choice.tolerance is None else {"kl": choice.tolerance}
    for text in choice.allow:
        name, _, value = text.partition("=")
        try:
            tolerances[name] = float(value)
        except ValueError:
            raise click.UsageError(f"--allow {text!r}: write NAME=VALUE, as cosine=0.95") from None
    return tolerances


def print_certificate(certificate: "Certificate") -> None:
    """Every file with its figures, and what has a tolerance with its verdict."""
    print_table(
        ["", "texts", "mean", "median", "p99", "p99.9", "max", "same top-1", "RMS dp", "PPL ratio"],
        (
            [entry.quant, name, *(f"{divergence.kl[key]:.2g}" for key in ("mean", "median", "p99", "p99.9", "max")),
             f"{divergence.top1:.1%}", f"{divergence.delta_p['rms']:.2%}", f"{divergence.perplexity_ratio:.4f}"]
            for entry in certificate.files
            for name, divergence in (("unsteered", entry.report.unsteered), ("steered", entry.report.steered))
            if divergence
        ),
        "KL(reference || file) in nats",
    )  # fmt: skip
    if any(entry.behaviour for entry in certificate.files):
        _print_behaviour(certificate)
    for entry in certificate.files:
        _print_findings(entry.quant, entry.verdict, entry.report.findings)


def _print_findings(quant: str, verdict: "Verdict", findings: "Sequence[Finding]") -> None:
    from edge_steer.parity.findings import VERDICT_WORDS

    words = VERDICT_WORDS[verdict]
    print_table(
        ["", "value", "95% interval", "allowed", ""],
        (
            [finding.name, f"{finding.value:.3g}", _interval(finding.interval),
             f"{finding.bound} {finding.tolerance:g}", finding.verdict]
            for finding in findings
        ),
        f"{quant}: {words.upper() if verdict == 'fail' else words}",
    )  # fmt: skip


def print_served(report: "ServedReport") -> None:
    """A server's figures, and what has a tolerance with its verdict."""
    sides = [("unsteered", report.unsteered)] + ([("steered", report.steered)] if report.steered else [])
    print_table(
        ["", "tokens", "mean |delta logprob|", "KL of the likeliest", "same top-1", "PPL ratio"],
        (
            [name, str(side.positions), f"{delta:.2g}", f"{side.kl['mean']:.2g}", f"{side.top1:.1%}",
             f"{side.perplexity_ratio:.4f}"]
            for (name, side), delta in zip(sides, report.delta_logprob, strict=True)
        ),
        f"{report.url} against the reference",
    )  # fmt: skip
    _print_findings(report.quant, report.verdict, report.findings)
    if not report.stated:
        say("the server does not say what steers its answers")


def _print_behaviour(certificate: "Certificate") -> None:
    from edge_steer.evaluation.figures import mean_text

    names = ("accuracy", "steps", "tokens", "density")
    print_table(
        ["", "dose", *names, "equal texts", "others part at"],
        (
            [entry.quant, f"{dose.dose:g}",
             *(f"{mean_text(name, dose.other.figures[name])} ({mean_text(name, dose.reference.figures[name])})"
               for name in names),
             f"{dose.equal} of {dose.other.samples}",
             "" if dose.median_parted is None else f"token {dose.median_parted:.0f}"]
            for entry in certificate.files
            for dose in entry.behaviour
        ),
        "behaviour, in brackets the reference's; median of the tokens that texts which differ have in common",
    )  # fmt: skip


def print_again(figures: "Sequence[RecheckedFigure]", as_json: bool) -> None:
    """Figure by figure what the certificate says and what it is now."""
    if as_json:
        click.echo(json.dumps([vars(figure) for figure in figures]))
        return
    print_table(
        ["", "figure", "recorded", "now", ""],
        (
            [
                f.file,
                f.figure,
                "not there" if f.recorded is None else f"{f.recorded:.4g}",
                f"{f.measured:.4g}",
                ("holds" if f.recorded is None else "same") if f.holds else "DIFFERS",
            ]
            for f in figures
        ),
        "the certificate run again",
    )
    click.echo("it holds" if all(f.holds for f in figures) else "IT DOES NOT HOLD")


def _interval(ends: "Interval | None") -> str:
    return f"{ends[0]:.3g}..{ends[1]:.3g}" if ends else ""
