"""`flerm tune`: the base is swept, the target dry-run and trained at the base's rate, all of it
reported; `flerm init` writes what `flerm tune` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flerm_client.cli import main
from flerm_core.errors import InvalidInput
from flerm_experiments.cli.init import LINES, init
from flerm_experiments.cli.sweep import sweep
from flerm_experiments.cli.tune import tune
from flerm_experiments.sweep.spec import load
from tests.experiments.sweep.command_scripts import played, recordings, trained


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRAINED", str(tmp_path / "trained"))
    return f"file://{tmp_path}/registry"


def test_the_target_is_trained_once_at_the_bases_best_rate_and_reported(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = played(tmp_path, rates="[0.005, 0.0125, 0.03]")
    tune(str(path), registry=address, as_json=True)
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert "base, lr 0.0125, seed 0: loss 0.1255" in printed.err
    assert told["lr"] == 0.0125
    assert told["optimum"] == pytest.approx(2**-6.3, rel=1e-3)
    (big,) = recordings(address, role="scaled")
    assert (big.spec.id, big.spec.lr, big.spec.variant) == (told["recording"], 0.0125, "matched")
    assert told["multipliers"] == {"w": 0.5}
    lines = trained(tmp_path)
    assert lines.count("scaled dry-run 0.0125 0 32") == 1
    assert lines.count("scaled match 0.0125 0 32") == 1
    assert len(lines) == 5
    text, page = (Path(each).read_text() for each in told["reports"])
    for each in (
        "The best learning rate of the base is 0.0125",
        "the optimum of its curve lies at 0.01269",
        "| 0.0125 | 0.1255 | – | 1 |",
        "| sweep of the base | 3 |",
        "| a sweep of the big model | 3 |",
        "| w | 32×2 | 0.5 | 0.00625 |",
        "1 tensors match the base",
        "\nThe base has one seed: optima of single seeds lie up to 0.4 octaves apart",
        "\nThe runs of this family do not tell the regret of a match: docs/results.md has what",
    ):
        assert each in text
    assert page.count("<circle") == 4
    assert "<script" not in page
    tune(str(path), registry=address, as_json=True)
    assert json.loads(capsys.readouterr().out)["recording"] == told["recording"]
    assert [each for each in trained(tmp_path) if "dry-run" not in each] == [
        each for each in lines if "dry-run" not in each
    ]


def test_further_dimensions_are_searched_on_the_base_and_carried_to_the_target(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = played(
        tmp_path,
        options="--decay 0.3 --kind {kind}",
        rates="[0.0125]",
        table='[search]\nkind = ["a", "b"]\n',
    )
    tune(str(path), registry=address, as_json=True)
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["values"] == {"kind": "a"}
    assert "search 2 of 20: lr 0.0125, kind" in printed.err
    (big,) = recordings(address, role="scaled")
    assert big.spec.config["kind"] == "a"
    # Two runs of the search, one of which is the curve, then the dry run and the big run.
    assert [line.split()[1] for line in trained(tmp_path)] == [
        "record", "record", "dry-run", "match",
    ]  # fmt: skip
    text = Path(told["reports"][0]).read_text()
    assert "The best learning rate of the base is 0.0125, with kind a" in text
    assert "| loss | learning rate | kind |\n| --- | ---: | ---: |\n| 0.1255 | 0.0125 | a |" in text
    assert "| search and sweep of the base | 2 |" in text


def test_flerm_sweep_refuses_a_search(tmp_path: Path, address: str) -> None:
    path = played(tmp_path, options="--kind {kind}", table='[search]\nkind = ["a", "b"]\n')
    with pytest.raises(
        InvalidInput, match=r"search: .* has the table \[search\], which only flerm tune can run"
    ):
        sweep(str(path), registry=address)


def test_a_base_that_fails_ends_before_the_big_run(tmp_path: Path, address: str) -> None:
    from flerm_core.errors import FlermError

    path = played(tmp_path, options="--fail given.lr<0.01", rates="[0.005, 0.0125]")
    with pytest.raises(FlermError, match=r"1 trainings of the base failed, the first at lr 0.005"):
        tune(str(path), registry=address)
    assert not [line for line in trained(tmp_path) if line.startswith("scaled")]


def test_a_built_in_workload_is_not_tuned(address: str) -> None:
    from flerm_core.errors import InvalidInput

    with pytest.raises(InvalidInput, match="tune needs a command of your own: see flerm init"):
        tune("resmlp-small", registry=address)


@pytest.mark.parametrize("framework", LINES)
def test_init_writes_a_file_that_is_read_and_shows_the_lines_to_add(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], framework: str
) -> None:
    script = tmp_path / "my train.py"
    init(
        script=str(script),
        framework=framework,
        scale=["width=64:512", "size=small:big"],
        launcher="torchrun --nproc-per-node 2",
        lr=0.002,
    )
    printed = capsys.readouterr().out
    assert LINES[framework] in printed
    sweep = load(str(tmp_path / "my train.toml"))
    assert sweep.initial_lr == 0.002
    assert sweep.command.words({"lr": "1", "seed": "2", "width": "64", "size": "small"}) == (
        *("torchrun", "--nproc-per-node", "2", "my train.py"),
        *("--lr", "1", "--seed", "2", "--width", "64", "--size", "small"),
    )
    assert dict(sweep.command.target) == {"width": 512, "size": "big"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scale": ["width"]}, "--scale is 'width', but it must be name=small:big"),
        ({"framework": "keras"}, "--framework is 'keras', but it must be one of loop, trainer"),
        ({"script": None}, "--script must be given where nobody can be asked"),
        ({"lr": 0.0}, "--lr is 0.0, but it must be positive"),
    ],
)
def test_what_init_cannot_use_is_told(tmp_path: Path, arguments: dict, sentence: str) -> None:
    from flerm_core.errors import InvalidInput

    given = {"script": str(tmp_path / "a.py"), "framework": "loop", "scale": ["width=1:2"]}
    with pytest.raises(InvalidInput, match=sentence):
        init(**given | arguments)


def test_both_are_commands_of_flerm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "nowhere.toml", "--registry", f"file://{tmp_path}/r"]) == 3
    assert "'nowhere.toml' is neither a file nor a preset" in capsys.readouterr().err
    assert main(["init", "--script", str(tmp_path / "a.py"), "--framework", "none"]) == 2
