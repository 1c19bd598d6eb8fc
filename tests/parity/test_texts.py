"""Token ids to compare on: what they are made from, and how they are cut."""

import pytest
from paths import ROOT

from edge_steer.core.errors import EdgeSteerError
from edge_steer.pairs.pair import Pair, read_pairs
from edge_steer.parity.texts import TokenisedText, question_and_answer, tokenise_texts
from edge_steer.reference.model import Reference

PAIRS = ROOT / "models" / "abacus" / "pairs.jsonl"


def test_pairs_strings_and_token_ids_may_be_mixed(bundled: Reference) -> None:
    pair = read_pairs(PAIRS)[0]
    raw = Pair("Mia has 3", " apples.", " pears.", raw=True)
    ids = TokenisedText((5, 6, 7), 2)
    asked, plain, text, same = tokenise_texts([pair, raw, "Ben has 4.", ids], bundled)
    assert asked == question_and_answer(bundled, pair.question, pair.negative)
    assert bundled.decode(plain.tokens) == "Mia has 3 pears."
    assert bundled.decode(plain.tokens[plain.prompt :]) == " pears."
    assert (bundled.decode(text.tokens), text.prompt) == ("Ben has 4.", 1)
    assert same is ids
    assert tokenise_texts(str(PAIRS), bundled)[0] == asked


def test_a_text_is_shortened_from_its_end() -> None:
    text = TokenisedText(tuple(range(100)), 40)
    assert text.shortened(32, 16) == TokenisedText(tuple(range(48)), 32)
    assert text.shortened(50, 16) == TokenisedText(tuple(range(56)), 40)
    assert TokenisedText((1, 2, 3), 2).shortened(32, 16) == TokenisedText((1, 2, 3), 2)


def test_what_is_no_text_is_named(bundled: Reference) -> None:
    with pytest.raises(EdgeSteerError, match="a dict is no text"):
        tokenise_texts([{}], bundled)  # type: ignore[list-item]
