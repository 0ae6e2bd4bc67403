"""The examples that users copy: they train without FLeRM's environment, are recorded with it, and
`flerm tune` takes them to a matched big run with its report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import fork

from flerm_client import RegistryClient
from flerm_client.training.run_instructions import RunInstructions
from flerm_experiments.sweep.spec import load
from tests.distributed.launch import on_ranks

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("gpt", "trainer", "lightning")
SMALL = ("--lr", "0.01", "--width", "16", "--steps", "3")


def run(name: str, folder: Path, *, said: dict[str, str]) -> None:
    """Trains a small model: the GPT on two ranks, the others in one process."""
    script, output = EXAMPLES / name / "train.py", folder / "output"
    environment = said | {"FLERM_REGISTRY": f"file://{folder}/registry"}
    arguments = (*SMALL, *(("--out", str(folder)) if name == "trainer" else ()))
    if name == "gpt":
        saved = {key: os.environ.get(key) for key in environment}
        os.environ.update(environment)
        try:
            outcome = on_ranks(2, script, *arguments, "--depth", "1", folder=folder)
        finally:
            for key, value in saved.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
        assert outcome.code == 0, outcome.output
    else:
        codes = fork(script, *arguments, environments=[environment], output=output).wait(90)
        assert codes == [0], output.read_text()


@pytest.mark.parametrize(
    "name", ["gpt", "lightning", pytest.param("trainer", marks=pytest.mark.slow)]
)
def test_an_example_is_recorded_as_its_environment_says(name: str, tmp_path: Path) -> None:
    said = RunInstructions(mode="record", family="example", lr=0.01, tags={"job": "a"})
    run(name, tmp_path, said=said.variables())
    with RegistryClient(f"file://{tmp_path}/registry") as registry:
        (found,) = registry.recordings("example")
    assert (found.status, found.rows, found.spec.tags) == ("completed", 1, {"job": "a"})
    assert 3.0 < found.final_loss < 5.7, "a byte has ln 256 = 5.5"
    assert found.spec.world_size == (2 if name == "gpt" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_without_instructions_records_nothing(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, said={"FLERM_MODE": ""})
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_example_needs_at_most_12_lines_and_its_sweep_file_is_read(name: str) -> None:
    text = (EXAMPLES / name / "train.py").read_text()
    marked = [line for line in text.splitlines() if line.endswith("# FLeRM")]
    assert 2 <= len(marked) <= 12
    assert len(marked) >= text.count("flerm_client") + text.count("flerm.")
    sweep = load(str(EXAMPLES / name / f"{name}.toml"))
    assert sweep.command is not None
    assert "train.py" in sweep.command.text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_tuned_small_and_trained_big_by_one_command(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder)
    path = folder / f"{name}.toml"
    text = path.read_text().replace("base_seeds = 2", "base_seeds = 1")
    path.write_text(text.replace("--seed {seed}", "--seed {seed} --steps 40"))
    address = f"file://{tmp_path}/registry"
    tuned: Any = subprocess.run(
        [sys.executable, "-m", "flerm_client.cli", "tune", str(path), "--registry", address],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert tuned.returncode == 0, tuned.stderr
    report = (folder / "flerm-runs" / name / "report.md").read_text()
    assert "## What was matched" in report
    with RegistryClient(address) as registry:
        (big,) = registry.recordings(role="scaled")
    assert (big.status, big.spec.variant) == ("completed", "matched")
    assert len(big.spec.targets_sources) == 1
    assert big.spec.id in report
