"""The command parity: GGUF files against their reference, with a certificate; and a certificate run again.

Takes click's strings, loads both sides one after the other, prints figures and verdicts.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.core.errors import EdgeSteerError
from edge_steer.terminal.options import FILE, FOLDER, engine_options, steering_from, steering_options
from edge_steer.terminal.progress import NOTES, progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.certificates.again import Again
    from edge_steer.certificates.files import File
    from edge_steer.certificates.make import Behaviour, Said
    from edge_steer.core.steering import Steering
    from edge_steer.tasks.task import Task


@click.command()
@click.argument("files", metavar="MODEL...", nargs=-1)
@click.option("--quants", help="Types to make of the one MODEL, as F16,Q8_0,Q4_K_M.  [default: MODEL as it is]")
@click.option("--reference", help="The same model's Hugging Face folder or hub id.")
@click.option("--revision", help="Commit of a hub reference.")
@click.option("--texts", type=FILE, help="Pairs (.jsonl) or plain text, one a line, to compare on.")
@click.option("--task", "task_name", help="Compare on the reference's own answers to a task, and on behaviour.")
@click.option("--split", help="Split of the task.")
@click.option("--problems", type=click.IntRange(1), default=100, show_default=True, help="Problems of the task.")
@click.option("--doses", default="-0.5,0,0.5,1", show_default=True,
              help="Factors on the strength at which the task is answered; 0 and 1 among them.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), default=16, show_default=True, help="Texts to compare on.")
@steering_options
@click.option("--reference-vector", help="What steers the reference.  [default: --vector]")
@click.option("--tolerance", type=click.FloatRange(0, min_open=True), help="Mean KL allowed.  [default: by quant]")
@click.option("--allow", multiple=True, metavar="NAME=VALUE",
              help="Another tolerance: kl, kl_ratio, cosine, norm or accuracy; repeatable.")  # fmt: skip
@click.option("-o", "--out", type=FOLDER, help="Write certificate.json, report.html, texts and rows here.")
@click.option("--save-reference", type=FILE, help="Save what the reference says, for --saved-reference elsewhere.")
@click.option("--saved-reference", type=FILE, help="Compare with a saved reference in place of --reference.")
@click.option("--check", "checked", type=FILE, help="Run a certificate again and compare; status 1 if it differs.")
@click.option("--json", "as_json", is_flag=True)
@engine_options
def parity(checked: Path | None, as_json: bool, **options: Any) -> None:
    """Compare steered MODELs (GGUF files, hub ids or folders) with their reference in PyTorch.

    Each is compared on the reference's texts, unsteered and steered, and has a verdict: pass, fail (status 1), or not
    enough data. An F32 file is also checked for the mechanism: every block, both phases, with F32 KV and no flash
    attention. With --out a certificate is written, which --check runs again.
    """
    with progress_bar() as progress:
        if checked:
            found = _again(checked, options, progress)
            failed = not all(figure.holds for figure in found)
        else:
            certificate = _certify(options, progress)
            failed = certificate is not None and certificate["verdict"] == "fail"
    if checked:
        _print_again(found, as_json)
    elif certificate and as_json:
        click.echo(json.dumps(certificate))
    elif certificate:
        print_certificate(certificate)
    if failed:
        sys.exit(1)


def print_certificate(certificate: Mapping[str, Any]) -> None:
    """Every file with its figures, and what has a tolerance with its verdict."""
    print_table(
        ["", "texts", "mean", "median", "p99", "p99.9", "max", "same top-1", "RMS dp", "PPL ratio"],
        (
            [entry["quant"], name, *(f"{told['kl'][key]:.2g}" for key in ("mean", "median", "p99", "p99.9", "max")),
             f"{told['top1']:.1%}", f"{told['delta_p']['rms']:.2%}", f"{told['perplexity_ratio']:.4f}"]
            for entry in certificate["files"]
            for name in ("unsteered", "steered")
            if (told := entry[name])
        ),
        "KL(reference || file) in nats",
    )  # fmt: skip
    if any(entry["behaviour"] for entry in certificate["files"]):
        print_table(
            ["", "dose", "accuracy", "steps", "tokens", "density", "equal texts", "others part at"],
            (
                [entry["quant"], f"{told['dose']:g}",
                 *("{1:.4g} ({0:.4g})".format(*(told[side]["figures"][name]["mean"] for side in ("reference", "other")))
                   for name in ("accuracy", "steps", "tokens", "density")),
                 f"{told['equal']} of {told['other']['samples']}",
                 "" if told["median_parted"] is None else f"token {told['median_parted']:.0f}"]
                for entry in certificate["files"]
                for told in entry["behaviour"]
            ),
            "behaviour, in brackets the reference's; median of the tokens that texts which differ have in common",
        )  # fmt: skip
    for entry in certificate["files"]:
        print_table(
            ["", "value", "95% interval", "tolerance", ""],
            (
                [found["name"], f"{found['value']:.3g}", _interval(found["interval"]),
                 f"{'<=' if found['at_most'] else '>='} {found['tolerance']:g}", found["verdict"]]
                for found in entry["findings"]
            ),
            f"{entry['quant']}: {_WORDS[entry['verdict']]}",
        )  # fmt: skip


_WORDS = {"pass": "within tolerance", "fail": "OUT OF TOLERANCE", "not enough data": "not enough data"}


def _certify(options: Mapping[str, Any], progress: Any) -> dict[str, Any] | None:
    from edge_steer.certificates import files as certificates_files
    from edge_steer.certificates import make
    from edge_steer.certificates import page as certificates_page
    from edge_steer.certificates.read import CERTIFICATE
    from edge_steer.core import steering as core_steering
    from edge_steer.parity import saved
    from edge_steer.tasks.grading import Graders

    if bool(options["reference"]) == bool(options["saved_reference"]):
        raise click.UsageError("give a --reference, or a --saved-reference made with --save-reference")
    if not options["saved_reference"] and bool(options["texts"]) == bool(options["task_name"]):
        raise click.UsageError("name --texts or a --task to compare on")
    if options["task_name"] and not options["out"]:
        raise click.UsageError("--task keeps its answers on the disk; name a folder with --out")
    if not options["files"] and not options["save_reference"]:
        raise click.UsageError("name a MODEL to compare")
    changes = _changes(options)
    steering = _steering(options, options["vectors"])
    theirs = options["reference_vector"]
    ours = _steering(options, (theirs,)) if theirs else steering
    doses = _doses(options["doses"]) if steering else [0.0]
    with contextlib.ExitStack() as stack:
        folder = options["out"] or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        task = _task(options)
        asked = make.Behaviour(task, doses, stack.enter_context(Graders())) if task else None
        files = _files(options, folder) if options["files"] else []
        certificates_files.check_files(files, bool(steering))
        if options["saved_reference"]:
            said = make.recall(saved.Saved(options["saved_reference"]), task)
            if said.baseline.steering != core_steering.described(steering):
                say("the saved reference is steered otherwise than the files; the certificate says how")
        else:
            said = _ask(options, folder, ours, asked, progress)
        if not files:
            return None
        found = make.certify(
            folder,
            said,
            files,
            steering,
            asked,
            vectors=[_path_of(given) for given in options["vectors"]],
            reference_vectors=[_path_of(theirs)] if theirs else None,
            changes=changes,
            progress=progress,
        )
        if options["out"]:
            page = certificates_page.write(folder, found, said.answers, task.samples if task else ())
            say(f"wrote {folder / CERTIFICATE} and {page.name}")
        return found


def _ask(
    options: Mapping[str, Any],
    folder: Path,
    steering: "Sequence[Steering]",
    asked: "Behaviour | None",
    progress: Any,
) -> "Said":
    """The reference at hand, saved if asked."""
    from edge_steer.certificates import make
    from edge_steer.parity import saved
    from edge_steer.parity.texts import read_texts
    from edge_steer.reference.model import Reference

    progress("loading the reference", 0, 1)
    reference = Reference.load(options["reference"], revision=options["revision"], threads=options["engine"].threads)
    said = make.ask(
        reference,
        folder,
        steering,
        asked or read_texts(options["texts"], reference),
        named=options["reference"],
        limit=options["limit"],
        threads=options["engine"].threads,
        progress=progress,
    )
    if target := options["save_reference"]:
        records = {f"{dose:g}": [row.record() for row in rows] for dose, rows in said.answers.items()}
        saved.save(target, said.baseline, said.source, records)
        say(f"wrote {target}")
    return said


def _again(path: Path, options: Mapping[str, Any], progress: Any) -> "list[Again]":
    from edge_steer.certificates import again
    from edge_steer.certificates import read as certificates_read
    from edge_steer.certificates.files import opened
    from edge_steer.core.steering import Steering
    from edge_steer.models import quantize
    from edge_steer.parity.baseline import Live
    from edge_steer.parity.compare import against
    from edge_steer.parity.tolerances import Tolerance
    from edge_steer.reference.model import Reference
    from edge_steer.vectors.read import read

    told = certificates_read.load(path)

    def steered(given: Sequence[str], said: Sequence[Mapping[str, Any]]) -> "list[Steering]":
        return [
            Steering(read(Path(file)).vector, one["strength"], tuple(one["layers"]), one["phase"])
            for file, one in zip(given, said, strict=True)
        ]

    def at(source: str) -> str:
        return str(path.parent / source) if (path.parent / source).exists() else source

    vectors = [_path_of(given) for given in options["vectors"]] or [at(source) for source in told["vectors"]]
    if len(vectors) != len(told["steering"]):
        raise EdgeSteerError(f"the certificate is for {len(told['steering'])} vectors; {len(vectors)} given")
    steering = steered(vectors, told["steering"])
    certificates_read.check_steering(told, steering)
    ours = steering
    if told["reference_vectors"]:
        given = [_path_of(options["reference_vector"])] if options["reference_vector"] else told["reference_vectors"]
        ours = steered([at(source) for source in given], told["reference_steering"])
        certificates_read.check_steering({"steering": told["reference_steering"]}, ours)
    known = {entry["digest"]: entry for entry in told["files"]}
    paths = []
    for entry in known.values():
        paths += [] if options["files"] else [quantize.gguf_for(at(entry["source"]), entry["quant"], progress=NOTES)]
    paths += [quantize.gguf_for(given, progress=NOTES) for given in options["files"]]
    entries = [certificates_read.entry_of(told, file) for file in paths]
    unsteered, with_vector = certificates_read.texts_of(path, told)
    source = told["reference"]
    progress("loading the reference", 0, 1)
    reference = Reference.load(
        options["reference"] or at(source["source"]), revision=options["revision"], threads=options["engine"].threads
    )
    if reference.model.revision != source["revision"]:
        raise EdgeSteerError(
            f"the certificate is for {source['name']} at {str(source['revision'])[:12]}, "
            f"not at {str(reference.model.revision)[:12]}; give its --reference or --revision"
        )
    live = Live(reference, unsteered, with_vector, ours)
    found: list[Again] = []
    for file, entry in zip(paths, entries, strict=True):
        with opened(file, {**entry["conditions"], "threads": options["engine"].threads}) as backend:
            report = against(
                live, backend, steering, entry["quant"], Tolerance(**entry["tolerance"]), progress=progress
            )  # fmt: skip
        found += again.again(entry, report)
    return found


def _files(options: Mapping[str, Any], folder: Path) -> "list[File]":
    from edge_steer.certificates.files import file_of

    given = options["files"]
    quants = options["quants"].split(",") if options["quants"] else [None]
    if len(given) > 1 and options["quants"]:
        raise click.UsageError("--quants are made of one MODEL; name several without it")
    return [file_of(source, quant, folder, options["engine"], progress=NOTES) for source in given for quant in quants]


def _steering(options: Mapping[str, Any], vectors: Sequence[str]) -> "tuple[Steering, ...]":
    return steering_from(tuple(vectors), options["layers"], options["strength"], options["phase"])


def _task(options: Mapping[str, Any]) -> "Task | None":
    from edge_steer.tasks.load import load_task

    if not options["task_name"]:
        return None
    return load_task(options["task_name"], split=options["split"], limit=options["problems"])


def _doses(given: str) -> list[float]:
    try:
        found = sorted({float(dose) for dose in given.split(",")})
    except ValueError:
        raise click.UsageError(f"--doses {given!r}: write numbers, as -0.5,0,1") from None
    if not {0.0, 1.0} <= {*found}:
        raise click.UsageError(f"--doses {given!r}: 0 and 1 must be among them; their texts are compared on")
    return found


def _changes(options: Mapping[str, Any]) -> dict[str, float]:
    changes = {} if options["tolerance"] is None else {"kl": options["tolerance"]}
    for given in options["allow"]:
        name, _, value = given.partition("=")
        try:
            changes[name] = float(value)
        except ValueError:
            raise click.UsageError(f"--allow {given!r}: write NAME=VALUE, as cosine=0.95") from None
    return changes


def _path_of(given: str) -> str:
    """The file of FILE[:STRENGTH]."""
    name, _, factor = given.rpartition(":")
    with contextlib.suppress(ValueError):
        return name if name and float(factor) is not None else given
    return given


def _print_again(found: "Sequence[Again]", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        click.echo(json.dumps([asdict(figure) for figure in found]))
        return
    print_table(
        ["", "figure", "recorded", "now", ""],
        ([f.file, f.figure, f"{f.recorded:.4g}", f"{f.found:.4g}", "same" if f.holds else "DIFFERS"] for f in found),
        "the certificate run again",
    )
    click.echo("it holds" if all(f.holds for f in found) else "IT DOES NOT HOLD")


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.3g}..{ends[1]:.3g}" if ends else ""
