"""Parity made evidence.

Takes files, a reference, a steering, and texts or a task; leaves a folder that says, with figures and verdicts,
whether the files are their reference, steered. It loads models only through models.load.

certificate      the value, certificate.json and summary.md
files            GGUF files to certify
behaviour        both sides answer problems
reference_side   the reference, running or saved
make             certify
recheck          a certificate run again
check            one file, nothing written
page, examples   report.html
reports          the reports of a certificate that is being made, kept for a run that goes on
served           a running server held against the reference
scored           figures of a server, which shows log-probabilities alone
"""
