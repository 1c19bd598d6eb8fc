"""The words that an answer and a right one have in common, as HotpotQA scores them; loaded by the harness."""

import re
from collections import Counter
from typing import Any


def score_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The best F1 of the answer with one of the right ones."""
    return {"qa_f1_score": max(f1(results[0], answer) for answer in doc["answers"])}


def f1(answer: str, right: str) -> float:
    words, wanted = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, right))
    common = (words & wanted).total()
    return 2 * common / (words.total() + wanted.total()) if common else 0.0
