"""The loss that a run printed."""

from __future__ import annotations

import pytest

from flerm_experiments.sweep.objective_line import last_value


@pytest.mark.parametrize(
    ("pattern", "text", "value"),
    [
        (r"val loss ([0-9.]+)", "val loss 2.5\nval loss 1.5\n", "1.5"),
        (r"val loss ([0-9.]+)", "val loss 2.5\nval loss nan\n", "nan"),
        (r"val loss ([0-9.]+)", "val loss 2.5\nval loss inf\n", "inf"),
        (r"val loss ([0-9.]+)", "val loss 1.2e-05\n", "1.2e-05"),
        (r"val loss ([0-9.]+)", "val loss -0.5\n", "-0.5"),
        (r"val loss ([0-9.]+)", "val loss 2.5\nval loss is low\n", "2.5"),
        (r"val loss ([0-9.]+)", "val loss 2.5\nval loss infinitely low\n", "2.5"),
        (r"loss ([0-9.]+) on test", "loss 1.5 on test\nloss nan on train\n", "1.5"),
        (r"(?P<loss>[0-9.]+) nats", "1.5 nats\ninf nats\n", "inf"),
        (r"(?i)^loss[=(]+([\d.]+)\)?$", "LOSS=2.5\nloss(3.5)\nno loss=4\n", "3.5"),
        (r"[](](?:a|b)([^]x]+)", "(a1.5", "1.5"),
        (r"step 2 loss (.*)", "step 2 loss 1.25 nats\n", "1.25 nats"),
        (r"loss (\S+)", "loss 2.5\nloss nan\n", "nan"),
        (r"loss (\d+)?", "loss high\n", ""),
        (r"loss ([0-9.]+)", "nothing\n", None),
    ],
)
def test_the_last_number_counts_as_a_whole(pattern: str, text: str, value: str | None) -> None:
    assert last_value(pattern, text) == value
