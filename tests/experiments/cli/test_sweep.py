"""`flerm sweep`: tables, figures, presets, and one sentence for what cannot be done."""

from __future__ import annotations

from pathlib import Path

import pytest

from flerm_client.cli import main
from tests.experiments.sweeps import LONGER_VARIANTS


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(
        'workload = "resmlp"\ninitial_lr = 0.0078125\nsteps = 4\nbase_seeds = 2\n'
        '[[cell]]\nwidth = 2\nvariants = ["plain", "matched", "mup"]\n'
    )
    return path


def test_the_table_lists_every_cell_with_its_shift(
    registry: str, sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(sweep_file), "--table", "--registry", registry]) == 0
    printed = capsys.readouterr().out
    for word in ("base", "width ×2", "plain", "matched", "mup", "shift", "loss at base's rate"):
        assert word in printed
    assert main(["sweep", str(sweep_file), "--markdown", "--registry", registry]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| width ×2 |") for line in lines) == 3


def test_table_and_figure_name_the_length_of_a_longer_cell(
    longer_registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "longer.toml"
    path.write_text(
        'workload = "resmlp"\ninitial_lr = 0.0078125\nsteps = 4\nevery = 2\nbase_seeds = 2\n'
        f"[[cell]]\nwidth = 2\nsteps = 2\nvariants = {list(LONGER_VARIANTS)}\n"
    )
    assert main(["sweep", str(path), "--markdown", "--registry", longer_registry]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| width ×2, steps ×2 |") for line in lines) == 4
    folder = tmp_path / "figures"
    assert (
        main(
            [
                "sweep",
                str(path),
                "--figure",
                str(folder),
                "--ending",
                "json",
                "--registry",
                longer_registry,
            ]
        )
        == 0
    )
    assert {path.name for path in folder.iterdir()} == {
        "longer-fslr.json",
        "longer-width-steps.json",
    }


def test_figures_are_drawn_from_the_registry(
    registry: str, sweep_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "figures"
    assert (
        main(
            [
                "sweep",
                str(sweep_file),
                "--figure",
                str(folder),
                "--ending",
                "json",
                "--registry",
                registry,
            ]
        )
        == 0
    )
    assert {path.name for path in folder.iterdir()} == {"tiny-fslr.json", "tiny-width.json"}


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("nothing",), 3, ["'nothing'", "decoder-width"]),
        (("resmlp", "--on", "moon"), 2, ["'moon'", "local, ray, slurm"]),
        (("resmlp", "--on", "slurm", "--cell", "99"), 2, ["'99'"]),
        (("resmlp", "--cell", "third"), 2, ["'third'", "base or a number"]),
        (("resmlp", "--figure", "here", "--ending", "gif"), 2, ["'gif'", "png, svg"]),
    ],
)
def test_a_wrong_argument_ends_with_one_sentence_and_its_code(
    registry: str,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    named: list[str],
) -> None:
    if "slurm" in arguments:
        pytest.importorskip("submitit")
    assert main(["sweep", *arguments, "--registry", registry]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert all(each in line for each in named)


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--list"]) == 0
    listed = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"resmlp", "decoder-width", "decoder-depth"} <= set(listed)
