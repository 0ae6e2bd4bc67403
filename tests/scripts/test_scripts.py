"""Training loops in the manner of public ones: recorded without a trace, matched, resumed whole.

Each loop is trained plain, recorded, and matched, and the latter two also in two parts, between
which a checkpoint is all that is kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.scripts.loop import HALF, Run, Script, assert_matched, targets_of
from tests.scripts.loops import (
    accelerate_no_trainer,
    fabric,
    fine_tuning,
    lightning_fit,
    lora,
    muon_adamw,
    nano_gpt,
    run_clm,
    trainer,
    word_lstm,
)

SCRIPTS: dict[str, Script] = {
    "nanoGPT": nano_gpt.train,
    "Muon and AdamW": muon_adamw.train,
    "LoRA": lora.train,
    "Trainer": trainer.train,
    "run_clm": run_clm.train,
    "Lightning": lightning_fit.train,
    "Accelerate": accelerate_no_trainer.train,
    "Fabric": fabric.train,
    "supervised fine-tuning": fine_tuning.train,
    "word-level LSTM": word_lstm.train,
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_recorded_run_is_the_plain_run_and_a_resumed_one_the_whole(
    script: Script, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("plain", "recorded", "resumed")}
    for folder in folders.values():
        folder.mkdir()
    plain = script(Run(folders["plain"]))
    recorded = script(Run(folders["recorded"], record=True))
    assert recorded.losses == plain.losses
    assert all(torch.equal(recorded.weights[name], w) for name, w in plain.weights.items())
    assert recorded.flerm is not None
    rows = recorded.flerm.trajectory
    assert len(rows.steps) >= 3
    assert np.isfinite(rows.values[-1]).any()

    script(Run(folders["resumed"], record=True, stop=True))
    resumed = script(Run(folders["resumed"], record=True, resume=True))
    assert resumed.flerm is not None
    assert resumed.losses == recorded.losses[HALF:]
    assert all(torch.equal(resumed.weights[name], w) for name, w in recorded.weights.items())
    assert resumed.flerm.trajectory == rows


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, id=name, marks=[] if name == "nanoGPT" else pytest.mark.slow)
        for name, script in SCRIPTS.items()
    ],
)
def test_a_matched_run_is_the_plain_run_until_it_is_matched_and_then_has_its_targets(
    script: Script, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("plain", "recorded", "matched", "resumed")}
    for folder in folders.values():
        folder.mkdir()
    plain = script(Run(folders["plain"]))
    targets = targets_of(script(Run(folders["recorded"], record=True)))
    matched = script(Run(folders["matched"], record=True, targets=targets))
    assert_matched(plain, matched, targets)

    script(Run(folders["resumed"], record=True, targets=targets, stop=True))
    resumed = script(Run(folders["resumed"], record=True, targets=targets, resume=True))
    assert resumed.flerm is not None
    assert matched.flerm is not None
    assert resumed.flerm.multipliers == matched.flerm.multipliers
    assert resumed.losses == matched.losses[HALF:]
    assert all(torch.equal(resumed.weights[name], w) for name, w in matched.weights.items())
