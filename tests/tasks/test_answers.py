"""What a text answers and whether it is right: mathematics by the last box, letters however they are stated."""

import pytest

from edge_steer.tasks.answers import grade, grade_math, grade_plain, last_boxed, without_tolerance


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("So $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{1}. Check again: \\boxed{2}", "2"),
        ("\\boxed{1} and \\boxed{2}", "1, 2"),
        ("$\\boxed{x=1}$, $\\boxed{x=3}$", "x=1, x=3"),
        ("\\boxed{5}\n\n\\boxed{5}", "5"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{4} and then \\boxed{", "4"),
        ("\\fbox{3}", "3"),
        ("\\boxed{1", None),
        ("none", None),
    ],
)
def test_the_last_box(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("answer", "boxed"),
    [
        ("7", "\\frac{14}{2}"),
        ("1450000", "\\$1,450,000"),
        ("10,\\!080", "10080"),
        ("4.5e33", "4.5 \\times 10^{33} \\mathrm{~ergs} \\mathrm{s}^{-1}"),
        ("4.5 \\times 10^{33}", "4.5e33"),
        ("1e-8", "10^{-8}"),
        ("20.39", "20.3901"),
        ("62.5\\%", "62.5"),
        ("62.5\\%", "0.625"),
        ("15", "15\\%"),
        ("18.8^{\\circ} within 0.1", "18.75"),
        ("864 \\mbox{ inches}^2", "864 \\text{ in}^2"),
        ("\\text{(C)}", "C"),
        ("x \\in [-2,7]", "-2 \\le x \\le 7"),
        ("1,3,5", "5, 3, 1"),
        ("(0,2),(0,-2),(4,23),(4,-23)", "(4,-23),(4,23),(0,2),(0,-2)"),
        ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}"),
        ("f(x)=2x", "2x"),
        ("m_{\\max }=n^{2}-n-1", "n^2-n-1"),
        ("E_{1},E_{2}", "E_1, E_2"),
        ("\\arcsin(10/13)", "\\sin^{-1}\\left(\\frac{10}{13}\\right)"),
    ],
)
def test_equal_answers_in_another_notation_are_right(answer: str, boxed: str) -> None:
    graded = grade(f"We find $x = 3$.\n\nThe answer is $\\boxed{{{boxed}}}$.", answer)
    assert graded.correct
    assert graded.extracted == boxed
    assert not graded.error


@pytest.mark.parametrize(
    ("answer", "boxed"),
    [
        ("7", "-7"),
        ("1.39e-10", "3.6 \\times 10^{-10}"),
        ("1e-8", "2e-8"),
        ("10^{-30}", "2 \\times 10^{-30}"),
        (".0000672", "6.7 \\times 10^{-5}"),
        ("4.5e33", "4.5e32"),
        ("4.5e33", "4.5 \\cdot e \\cdot 33"),
        ("18.8 within 0.1", "18.6"),
        ("62.5\\%", "6.25"),
        ("(0,4]", "[0,4]"),
        ("1,3,5", "1,3"),
        ("2019", "2019.1"),
        ("\\text{(C)}", "B"),
    ],
)
def test_other_answers_are_wrong(answer: str, boxed: str) -> None:
    assert not grade(f"The answer is \\boxed{{{boxed}}}.", answer).correct


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 + 4 = 7.\n\nSo she has 7 apples.", True),
        ("The final answer is $7$.", True),
        ("The answer is \\boxed{8}. It is not 7.", False),
        ("", False),
    ],
)
def test_without_a_box_the_text_is_searched(text: str, right: bool) -> None:
    assert grade(text, "7").correct is right


def test_a_tolerance_is_no_part_of_the_stated_answer() -> None:
    assert without_tolerance("18.8^{\\circ} within 1e-1") == "18.8^{\\circ}"
    assert without_tolerance("18.8^{\\circ}") == "18.8^{\\circ}"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B.", "B"),
        ("Answer: (C)", "C"),
        ("**Answer: D**", "D"),
        ("The correct option is **A**.", "A"),
        ("So, the correct answer is:\n**B. The leisure area**", "B"),
        ("The correct answer is option C because A and B fail.", "C"),
        ("the answer is b.", "B"),
        ("Option C is correct.", "C"),
        ("The answer is A. Wait, no. The answer is C.", "C"),
        ("First A looks right. But the answer is B.", "B"),
        ("A careful reader sees that (B) is implied.\n\nD", "D"),
        ("C. The business district", "C"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("\\boxed{\\textbf{(D)}}", "D"),
        ("\\boxed{B. The leisure area}", "B"),
        ("\\boxed{b}", "B"),
        ("The answer is A, so \\boxed{C}.", "C"),
        ("The answer is B or C.", ""),
        ("\\boxed{A, B}", ""),
        ("A cat sat. The answer is a matter of taste.", ""),
        ("", ""),
    ],
)
def test_the_stated_letter(text: str, letter: str) -> None:
    assert grade(text, letter or "A", "letter").extracted == letter
    assert grade(text, letter or "A", "letter").correct is bool(letter)
    assert not grade(text, "E", "letter").correct


@pytest.mark.parametrize(
    ("text", "answer", "boxed", "lenient"),
    [
        ("So \\boxed{7}.", "7", True, True),
        ("The answer is 7.", "7", False, True),
        ("The answer is \\boxed{7", "7", False, False),
        ("\\boxed{1} and \\boxed{2}", "1, 2", False, True),
        ("\\boxed{1} and \\boxed{2}", "2", True, False),
        ("\\boxed{3}. No: \\boxed{\\frac{4}{2}}", "2", True, True),
        ("", "7", False, False),
    ],
)
def test_only_the_last_box_counts_where_that_is_asked(text: str, answer: str, boxed: bool, lenient: bool) -> None:
    strict, mild = grade(text, answer, grading="boxed"), grade(text, answer)
    assert (strict.correct, mild.correct) == (boxed, lenient)
    assert (strict.boxed, strict.lenient) == (mild.boxed, mild.lenient) == (boxed, lenient)
    if "boxed{" not in text:
        assert strict.extracted == ""


def test_a_letter_without_a_box_counts_leniently() -> None:
    assert grade("The answer is B.", "B", "letter").correct
    assert not grade("The answer is B.", "B", "letter", "boxed").correct
    assert grade("The answer is \\boxed{B}.", "B", "letter", "boxed").correct


@pytest.mark.parametrize("answer", ["0", "7", "-7", "18", "100000", "999999999999999"])
@pytest.mark.parametrize("boxed", ["0", "7", "-7", "18", "100000", "100001", "999999999999998", "999999999999999"])
def test_whole_numbers_are_graded_as_math_verify_grades_them(answer: str, boxed: str) -> None:
    text = f"Not \\boxed{{3}}.\n\nThe answer is $\\boxed{{ {boxed} }}$."
    plain = grade_plain(text, answer)
    assert plain
    assert plain == grade(text, answer) == grade(text, answer, grading="boxed")
    assert (plain.correct, plain.extracted) == (grade_math(text, answer).correct, boxed)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("\\boxed{1} and \\boxed{2}", "2"), ("\\boxed{07}", "7"), ("\\boxed{7}", "7 within 1"), ("7", "7")],
)
def test_all_else_is_left_to_math_verify(text: str, answer: str) -> None:
    assert grade_plain(text, answer) is None
    assert grade_plain("\\boxed{7}", "7", "letter") is None
