"""A rank ends when its script does, also where its process group is destroyed before its model."""

from __future__ import annotations

from pathlib import Path

from .launch import on_ranks


def test_a_measured_model_may_outlive_its_process_group(tmp_path: Path) -> None:
    result = on_ranks(2, "leaving.py", "measured", folder=tmp_path, seconds=60.0)
    assert result.code == 0, result.output
    assert result.ranks == ["left", "left"]
