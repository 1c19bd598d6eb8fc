import random

import pytest

from edge_steer.core.streaming import StreamedText


def slow(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Character by character: the text before the first stop string that is complete, the longest of several."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - len(max(found, key=len))], True
    return text, False


def cut(text: str, pieces: random.Random) -> list[str]:
    places = sorted(pieces.choices(range(len(text) + 1), k=pieces.randint(0, len(text))))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def test_the_text_and_what_is_shown_do_not_depend_on_how_it_was_cut() -> None:
    choose = random.Random(0)
    stopped = 0
    for _ in range(3000):
        said = "".join(choose.choices("abc", k=choose.randint(0, 12)))
        stop = tuple("".join(choose.choices("abc", k=choose.randint(1, 4))) for _ in range(choose.randint(0, 3)))
        text = StreamedText(stop)
        shown = ""
        for piece in cut(said, choose):
            shown += text.add(piece)
            assert text.text.startswith(shown)
        shown += text.finish()
        assert (text.text, text.stopped) == slow(said, stop) and shown == text.text, (said, stop)
        stopped += text.stopped
    assert 500 < stopped < 2500


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        ((), ["a", "b"], ["a", "b"]),
        (("\n\n",), ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
        (("END", "NO"), ["xE", "N", "NO!"], ["x", "", "EN"]),
        (("b", "abc"), ["ab", "c"], ["a", ""]),
    ],
)
def test_only_the_beginning_of_a_stop_string_is_held_back(
    stop: tuple[str, ...], pieces: list[str], shown: list[str]
) -> None:
    text = StreamedText(stop)
    assert [text.add(piece) for piece in pieces] == shown


def test_what_was_held_back_is_given_at_the_end_and_nothing_after_a_stop() -> None:
    text = StreamedText(("stop",))
    assert text.add("one sto") == "one "
    assert text.finish() == "sto"
    assert text.finish() == ""
    text = StreamedText(("stop",))
    assert text.add("one stop two") == "one "
    assert (text.add("three"), text.finish(), text.text, text.stopped) == ("", "", "one ", True)
