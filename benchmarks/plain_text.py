"""A solution without its markup: LaTeX and Markdown taken off, every word and number left, and a count of the marks.

Takes and gives text. The final \\\\boxed{} stays and is no mark: GSM8K's prompt asks for it. Numbered lists stay: they
are plain.
"""

import re

MARK = re.compile(
    r"\\[\[\]()]"  # \[ \] \( \)
    r"|\\(?!boxed\b)[A-Za-z]+"  # commands
    r"|\$\$|\*\*|`+"
    r"|^#{1,6}[ ]|^\s*[-*][ ]",  # headings, items
    re.MULTILINE,
)
SYMBOLS = {"times": "*", "cdot": "*", "div": "/", "approx": "is about", "quad": " ", "left": "", "right": ""}
BRACED = r"\{((?:[^{}]|\{[^{}]*\})*)\}"


def count_marks(text: str) -> int:
    """How many marks of LaTeX and Markdown a text has."""
    return len(MARK.findall(text))


def plain(text: str) -> str:
    """The text in plain words and arithmetic, its paragraphs as they are."""
    text = re.sub(r"\\\[\s*(.*?)\s*\\\]", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\\(\s*(.*?)\s*\\\)", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\d?frac" + BRACED + BRACED, r"\1 / \2", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)" + BRACED, r"\1", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda match: SYMBOLS.get(match[1], match[0] if match[1] == "boxed" else ""), text)
    text = re.sub(r"\\[,;: ]", " ", text).replace("\\$", "$").replace("\\%", "%").replace("\\\\", "\n")
    text = re.sub(r"\$\$|\*\*|`+(?:\w+\n)?", "", text)
    text = re.sub(r"^#{1,6}[ ]|^\s*[-*][ ]", "", text, flags=re.MULTILINE)
    return re.sub(r"[ \t]{2,}", " ", text).strip()
