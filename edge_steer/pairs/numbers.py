"""The numbers a solution computes, and which of them a rewrite keeps, drops or adds."""

import re
from fractions import Fraction

from edge_steer.pairs.pair import Pair

# Possessive, so that a number is never read short to let what follows it pass.
DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?+"
FRACTION = r"\\[dt]?frac\s*+\{\s*+(\d++)\s*+\}\s*+\{\s*+(\d++)\s*+\}"
VALUE = rf"(?:{FRACTION}|({DIGITS}|\.\d++)(?:\s*+/\s*+(\d++))?+)"
OPENING = r"(?:[\s$({\[*]|\\[\[(,;!$]|\\(?:boxed|mathbf|textbf|text|mathrm|displaystyle|left|quad)\b)*+"
SIGN = r"(?:(?<![<>!=:])=(?!=)|≈|\\approx\b)"
OPERATOR = r"(?!\s*+(?:[-+*/^\u00d7\u00b7\u00f7]|\\(?:times|cdot|div|pm)\b)\s*+(?:[0-9$({.\\]|[a-zA-Z]\b))"
NUMBER = re.compile(VALUE, re.ASCII)
RESULT = re.compile(rf"{SIGN}{OPENING}-?+{OPENING}{VALUE}{OPERATOR}", re.ASCII)
LONGEST = 40  # characters; what is longer is a text run wild, not a number


def computed_numbers(text: str) -> dict[Fraction, str]:
    """The numbers that computations end in: those right of `=` or `≈` that no operator follows, as first written.

    In "3 * 4 = 2 * 6 = 12" that is 12. A fraction is one number, signs are left out, 1,200 is 1200 and 0.50 is 1/2.
    """
    return _values(RESULT, text)


def changed_numbers(pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Computed numbers of the negative that stand nowhere in the positive, and the reverse, as they are written.

    A number counts as kept wherever it stands, so that "= 12" may become "gives 12"; one that the question names is
    never added.
    """
    positive, negative = _values(NUMBER, pair.positive), _values(NUMBER, pair.negative)
    known = negative.keys() | _values(NUMBER, pair.question).keys()
    dropped = (shown for value, shown in computed_numbers(pair.negative).items() if value not in positive)
    added = (shown for value, shown in computed_numbers(pair.positive).items() if value not in known)
    return tuple(dropped), tuple(added)


def _values(pattern: re.Pattern[str], text: str) -> dict[Fraction, str]:
    plain = text.replace("{,}", ",").replace("\u2212", "-")
    written: dict[Fraction, str] = {}
    for match in pattern.finditer(plain):
        above, below, number, divisor = match.groups()
        if len(match[0]) > LONGEST or ((below or divisor) and not int(below or divisor)):
            continue
        if above:
            written.setdefault(Fraction(int(above), int(below)), f"{above}/{below}")
            continue
        value = Fraction(number.replace(",", ""))
        written.setdefault(value / int(divisor) if divisor else value, f"{number}/{divisor}" if divisor else number)
        if divisor and pattern is NUMBER:
            written.setdefault(value, number)
            written.setdefault(Fraction(int(divisor)), divisor)
    return written
