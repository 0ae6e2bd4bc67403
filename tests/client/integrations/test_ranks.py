"""The frameworks on two ranks, under DDP and FSDP2: no trace, equal rates, bit-identical resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import same

from tests.distributed.launch import torchrun

JOB = Path(__file__).parent / "jobs" / "framework_ranks.py"


GUIDE = Path(__file__).parents[3] / "docs" / "distributed.md"


@pytest.mark.slow
def test_the_guides_loop_by_hand_needs_three_lines_and_runs_sharded(tmp_path: Path) -> None:
    loop = GUIDE.read_text().split("```python\n")[1].split("```")[0]
    assert loop.count("# +\n") == 3
    script = tmp_path / "loop.py"
    script.write_text(
        f"from torch import distributed\ndistributed.init_process_group('gloo')\n{loop}"
    )
    outcome = torchrun(2, script, folder=tmp_path)
    assert outcome.code == 0, outcome.output
    lines = [line for line in outcome.output.splitlines() if line.startswith("{'0.weight'")]
    assert len(lines) == 2
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("framework", "held"),
    [
        (framework, held)
        for framework in ("trainer", "accelerate", "lightning")
        for held in ("ddp", "fsdp2")
    ],
)
def test_a_framework_on_two_ranks(framework: str, held: str, tmp_path: Path) -> None:
    outcome = torchrun(
        2, JOB, framework, held, folder=tmp_path, seconds=240, ACCELERATE_USE_CPU="true"
    )
    assert outcome.code == 0, outcome.output
    ranks: list[dict[str, Any]] = outcome.ranks
    for told in ranks:
        assert told["recorded"]["losses"] == told["plain"]["losses"]
        assert same(told["recorded"]["weights"], told["plain"]["weights"])
        assert told["recorded"]["steps"] == [1, 3, 5]
        assert told["resumed"]["losses"][-3:] == told["matched"]["losses"][-3:]
        assert same(told["resumed"]["weights"], told["matched"]["weights"])
        assert np.array_equal(told["resumed"]["values"], told["matched"]["values"], equal_nan=True)
        assert told["resumed"]["multipliers"] == told["matched"]["multipliers"]
        assert set(told["matched"]["multipliers"].values()) != {1.0}
    assert ranks[0]["recorded"]["fslr"] == ranks[1]["recorded"]["fslr"]
    assert ranks[0]["matched"]["multipliers"] == ranks[1]["matched"]["multipliers"]
