"""The same loops on two ranks under torchrun, and FSDP2 by hand: no trace, matched, resumed whole.

Loops that import the same frameworks share a launch, because importing takes most of the time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.launch import torchrun

LAUNCHES = {
    "torch": ("nano_gpt", "muon_adamw", "word_lstm", "fsdp2"),
    "transformers": ("lora", "fine_tuning", "accelerate_no_trainer", "trainer", "run_clm"),
    "lightning": ("fabric", "lightning_fit"),
}
SHARED_OUT = ("trainer", "run_clm")
"""Loops whose Trainer shares one data set out, and logs the mean loss of all ranks."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scripts", LAUNCHES.values(), ids=LAUNCHES)
def test_a_script_on_two_ranks_is_recorded_without_a_trace_matched_alike_and_resumed(
    scripts: tuple[str, ...], tmp_path: Path
) -> None:
    job = Path(__file__).parent / "jobs" / "on_ranks.py"
    outcome = torchrun(2, job, *scripts, folder=tmp_path, seconds=500, ACCELERATE_USE_CPU="true")
    assert outcome.code == 0, outcome.output
    for script in scripts:
        one, two = (rank[script] for rank in outcome.ranks)
        assert one["multipliers"] == two["multipliers"], script
        assert one["fslr"] == two["fslr"], script
        assert all(torch.equal(two["weights"][name], w) for name, w in one["weights"].items())
        own_batches = one["losses"] != two["losses"]
        assert own_batches == (script not in SHARED_OUT), script
