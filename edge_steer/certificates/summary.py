"""The figures of a certificate in Markdown, to paste into a model card: summary.md.

Takes a certificate, gives text.
"""

from pathlib import Path

from edge_steer.certificates.certificate import Certificate, FileEntry
from edge_steer.storage.files import write_text

SUMMARY = "summary.md"


def write_summary(folder: Path, certificate: Certificate) -> Path:
    """summary.md in the certificate's folder; its path. Errors: EdgeSteerError where it cannot be written."""
    return write_text(folder / SUMMARY, summary(certificate))


def summary(certificate: Certificate) -> str:
    """A table of the files, and a sentence for each figure that does not pass."""
    reference, texts = certificate.reference, certificate.texts
    lines = [
        f"# Parity of {reference.name}, steered",
        "",
        f"Reference: {reference.name} in PyTorch, {reference.dtype}, {reference.origin}. "
        f"KL(reference \\|\\| file) in nats a token, on {texts.unsteered} unsteered and "
        f"{texts.steered} steered texts of the reference. Verdict: **{certificate.verdict}**.",
        "",
        "| file | KL unsteered | KL steered | same top-1, steered | effect: cosine, length | verdict |",
        "|---|---|---|---|---|---|",
        *map(_row, certificate.files),
    ]
    for entry in certificate.files:
        for finding in entry.report.findings:
            if finding.verdict != "pass":
                lines += ["", f"{entry.quant}: {finding}."]
    return "\n".join(lines) + "\n"


def _row(entry: FileEntry) -> str:
    report = entry.report
    steered = f"{report.steered.kl['mean']:.2g} | {report.steered.top1:.1%}" if report.steered else "|"
    effect = f"{report.effect.cosine:.4f}, {report.effect.norm:.3f}" if report.effect else ""
    return f"| {entry.quant} | {report.unsteered.kl['mean']:.2g} | {steered} | {effect} | {entry.verdict} |"
