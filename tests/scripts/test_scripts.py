"""Training loops in the manner of public ones: untouched by a recording, and resumed as if whole.

Each loop is trained plain, recorded, and recorded in two parts, between which a checkpoint
is all that is kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.scripts.loop import HALF, Run, Script
from tests.scripts.loops import (
    accelerate_no_trainer,
    fabric,
    fine_tuning,
    lightning_fit,
    lora,
    muon_adamw,
    nano_gpt,
    trainer,
    word_lstm,
)

SCRIPTS: dict[str, Script] = {
    "nanoGPT": nano_gpt.train,
    "Muon and AdamW": muon_adamw.train,
    "LoRA": lora.train,
    "Trainer": trainer.train,
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
    assert recorded.trajectory is not None
    assert len(recorded.trajectory.steps) >= 3
    assert np.isfinite(recorded.trajectory.values[-1]).any()

    script(Run(folders["resumed"], record=True, stop=True))
    resumed = script(Run(folders["resumed"], record=True, resume=True))
    assert resumed.losses == recorded.losses[HALF:]
    assert all(torch.equal(resumed.weights[name], w) for name, w in recorded.weights.items())
    assert resumed.trajectory == recorded.trajectory
