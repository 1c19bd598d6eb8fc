"""The paper's tables of cost, recomputed from its parameters and seconds."""

from training_cost import PUBLISHED

GIB, KIB, MINUTE = 2**30, 2**10, 60
PRINTED = {  # Adam's memory on a GPU, sending in a whole run: each with its unit and its last digit
    "Qwen2.5-14B, all weights": ((13.8, GIB, 0.1), (52, MINUTE, 1)),
    "Qwen2.5-14B, vector": ((240, KIB, 1), (34, 1, 1)),
    "Qwen2.5-7B, all weights": ((7.1, GIB, 0.1), (27.7, MINUTE, 0.1)),
    "Qwen2.5-7B, vector": ((98, KIB, 1), (0.314, MINUTE, 0.001)),
    "Llama-3.1-8B, all weights": ((7.5, GIB, 0.1), (27.8, MINUTE, 0.1)),
    "Llama-3.1-8B, vector": ((128, KIB, 1), (0.36, MINUTE, 0.01)),
}


def test_the_twelve_published_cells_follow_from_their_formulas() -> None:
    assert {row.model for row in PUBLISHED} == set(PRINTED)
    for row in PUBLISHED:
        for value, (printed, unit, digit) in zip((row.memory, row.overall), PRINTED[row.model], strict=True):
            assert abs(value / unit - printed) < digit, row.model
