"""How each paper asks: prompt, system message, length, sampling, number of samples and grading of a task.

Takes the name of a protocol and the kind of a task, gives TaskSettings. It knows no problem and no model.
"""

from dataclasses import replace
from typing import Literal, get_args

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.sampling import GREEDY, Sampling
from edge_steer.tasks.answers import Grading, Kind
from edge_steer.tasks.task import TaskSettings

Protocol = Literal["densesteer", "densesteer-code", "bias-only"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
BOX = "\\boxed{}"
DENSESTEER: dict[Kind, str] = {
    "math": f"{{question}}\n\nLet's think step by step, and put the final answer in {BOX}.",
    "letter": f"{{question}}\n\nLet's think step by step, and put the letter of the answer in {BOX}.",
}
# The prompt of DenseSteer's published task files; the one for letters is made after it.
DENSESTEER_CODE: dict[Kind, str] = {
    "math": "Solve the following math problem. Present the final answer in the format: Final Answer: "
    "\\boxed{your_answer}.\nProblem: {question}\nAnswer:",
    "letter": "Solve the following problem. Present the letter of the answer in the format: Final Answer: "
    "\\boxed{letter}.\nProblem: {question}\nAnswer:",
}
BIAS_ONLY: dict[Kind, str] = {  # system messages
    "math": f"Please reason step by step, and put your final answer within {BOX}.",
    "letter": f"Please reason step by step, and put the letter of your final answer within {BOX}.",
}
LAST_NUMBER_TASKS = ("gsm8k",)  # of which DenseSteer's published code takes the last number of a text
LONG_CONTEXT = 2**15  # prompt and answer; a model with a shorter one, as Qwen2.5-Math, ends at its own


def protocol_settings(protocol: Protocol, task: str, kind: Kind, averaged: bool = False) -> TaskSettings:
    """How a protocol asks a task. averaged: one with so few problems that Bias-Only draws 32 samples of each.

    Errors: EdgeSteerError for an unknown protocol.
    """
    if protocol == "densesteer":
        return TaskSettings(DENSESTEER[kind], None, 2048, GREEDY, 1)
    if protocol == "densesteer-code":
        grading: Grading = "lenient" if task in LAST_NUMBER_TASKS else "boxed"
        return TaskSettings(DENSESTEER_CODE[kind], None, 2048, GREEDY, 1, stop=("Problem:",), grading=grading)
    if protocol == "bias-only":
        samples, drawn = 32 if averaged else 1, Sampling(temperature=1.0)
        settings = TaskSettings("{question}", BIAS_ONLY[kind], LONG_CONTEXT, drawn, samples, grading="boxed")
        return replace(settings, context=LONG_CONTEXT)
    raise EdgeSteerError(f"no protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
