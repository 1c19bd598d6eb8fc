"""A certificate: certificate.json read, held against files and steerings, compared with a second run, summed up.

Takes a certificate and what a user has, gives the texts, the entry of a file, differences, Markdown; refuses what the
certificate is not for. certify.py makes it; docs/certificate.md describes the files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering, described
from edge_steer.parity.texts import Text
from edge_steer.storage.digests import digest
from edge_steer.storage.files import readable

FORMAT = "edge-steer certificate 1"
CERTIFICATE, TEXTS, SUMMARY, ROWS = "certificate.json", "texts.jsonl", "summary.md", "rows"


def load(path: Path) -> dict[str, Any]:
    """A certificate. Errors: EdgeSteerError for a file that is none, or of another version."""
    try:
        found = json.loads(readable(path, "a certificate of edge-steer").read_text("utf-8"))
    except ValueError as error:
        raise EdgeSteerError(f"{path} is no certificate: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise EdgeSteerError(f"{path} is no certificate that this edge-steer reads; expected the format {FORMAT!r}")
    missing = {"reference", "vectors", "steering", "reference_steering", "texts", "files", "verdict"} - {*found}
    if missing:
        raise EdgeSteerError(f"{path} is no whole certificate: it lacks {', '.join(sorted(missing))}")
    return found


def texts_of(path: Path, certificate: Mapping[str, Any]) -> tuple[list[Text], list[Text]]:
    """The texts, unsteered and steered, that lie beside the certificate at `path`.

    Errors: EdgeSteerError where they are missing or others.
    """
    file = path.parent / certificate["texts"]["file"]
    if digest(readable(file, "the texts of the certificate")) != certificate["texts"]["digest"]:
        raise EdgeSteerError(f"{file} holds other texts than the certificate was made with; restore it")
    found: dict[str, list[Text]] = {"unsteered": [], "steered": []}
    for line in file.read_text("utf-8").splitlines():
        told = json.loads(line)
        found[told["set"]].append(Text(tuple(told["tokens"]), told["prompt"]))
    return found["unsteered"], found["steered"]


def entry_of(certificate: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the certificate says of a file. Errors: EdgeSteerError if it is for other files."""
    found = digest(path)
    for entry in certificate["files"]:
        if entry["digest"] == found:
            return dict(entry)
    known = ", ".join(f"{entry['file']} ({entry['digest'][:12]})" for entry in certificate["files"])
    raise EdgeSteerError(f"the certificate is not for {path} ({found[:12]}); it is for {known}")


def check_steering(certificate: Mapping[str, Any], steering: Sequence[Steering]) -> None:
    """Errors: EdgeSteerError if the certificate is for another vector, strength, layers or phase."""
    asked, told = described(steering), certificate["steering"]
    for mine, theirs in zip(asked, told, strict=False):
        for key, value in mine.items():
            if value != theirs[key]:
                raise EdgeSteerError(f"the certificate is for another steering: {key} is {theirs[key]}, not {value}")
    if len(asked) != len(told):
        raise EdgeSteerError(f"the certificate is for {len(told)} vectors; {len(asked)} given")


def markdown(certificate: Mapping[str, Any]) -> str:
    """A summary to paste into a model card."""
    reference = certificate["reference"]
    lines = [
        f"# Parity of {reference['name']}, steered",
        "",
        f"Reference: {reference['name']} in PyTorch, {reference['dtype']}. "
        f"KL(reference \\|\\| file) in nats a token, on {certificate['texts']['unsteered']} unsteered and "
        f"{certificate['texts']['steered']} steered texts of the reference. Verdict: **{certificate['verdict']}**.",
        "",
        "| file | KL unsteered | KL steered | same top-1, steered | effect: cosine, length | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for entry in certificate["files"]:
        steered, effect = entry["steered"], entry["effect"]
        lines.append(
            f"| {entry['quant']} | {entry['unsteered']['kl']['mean']:.2g} | "
            + (f"{steered['kl']['mean']:.2g} | {steered['top1']:.1%} | " if steered else "| | ")
            + (f"{effect['cosine']:.4f}, {effect['norm']:.3f} | " if effect else "| ")
            + f"{entry['verdict']} |"
        )
    for entry in certificate["files"]:
        for finding in entry["findings"]:
            if finding["verdict"] != "pass":
                sign = "at most" if finding["at_most"] else "at least"
                lines += ["", f"{entry['quant']}: {finding['name']} is {finding['value']:.3g}, {sign} "
                          f"{finding['tolerance']:.3g} allowed: {finding['verdict']}."]  # fmt: skip
    return "\n".join(lines) + "\n"
