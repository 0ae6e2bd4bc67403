"""Loops that change model, optimiser or weights behind FLeRM: no trace, right rates, or a sentence.

None of them ends, and none is measured or matched in part without a word.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from tests.scripts import unusual_loops as loops
from tests.scripts.loop import Run, Script, Trained, assert_matched, targets_of

ALL = {
    "optimizer replaced": (
        loops.optimizer_replaced,
        loops.LATER,
        "the weights have changed 8 time",
    ),
    "layer replaced": (
        loops.layer_replaced,
        loops.STEPS,
        "the optimizer has got 2 further tensors",
    ),
    "frozen and thawed": (loops.frozen_and_thawed, loops.STEPS, ""),
    "group added": (loops.group_added, loops.STEPS, "the optimizer has got 2 further tensors"),
    "inference mode": (loops.steps_under_inference_mode, loops.STEPS, ""),
    "GAN": (loops.adversaries, loops.STEPS, ""),
    "SAM": (loops.sharpness_aware, loops.STEPS, ""),
    "torch.func": (loops.functional_gradients, loops.STEPS, ""),
    "torch.func alone": (loops.functional_steps, 0, "this run has measured nothing: no step was"),
    "EMA": (loops.averaged_copy, loops.STEPS, ""),
    "offloading": (loops.weights_away, loops.STEPS, ""),
}
"""By name: the loop, its steps that are counted, and how the one sentence begins that it says."""


@pytest.mark.parametrize(
    ("script", "steps", "sentence"),
    [
        pytest.param(*row, id=name, marks=[] if name == "GAN" else pytest.mark.slow)
        for name, row in ALL.items()
    ],
)
def test_an_unusual_loop_is_measured_and_matched_or_says_why_not(
    script: Script, steps: int, sentence: str, tmp_path: Path
) -> None:
    def run(**options: object) -> tuple[Trained, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done = script(Run(tmp_path, record=True, **options))
        return done, list(dict.fromkeys(str(each.message) for each in caught))

    plain = script(Run(tmp_path))
    recorded, said = run()
    assert [each[: len(sentence)] for each in said] == [sentence] * bool(sentence)
    assert recorded.losses == plain.losses
    assert all(torch.equal(recorded.weights[name], w) for name, w in plain.weights.items())
    assert recorded.flerm.steps == steps
    assert recorded.flerm.measurements >= steps // 2

    targets = targets_of(recorded) or dict.fromkeys(plain.weights, 1.0)
    matched, said = run(targets=targets)
    assert [each[: len(sentence)] for each in said] == [sentence] * bool(sentence)
    if steps:
        assert_matched(plain, matched, targets)
    else:
        assert matched.losses == plain.losses
