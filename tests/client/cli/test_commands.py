"""What each `flerm` command prints."""

from __future__ import annotations

import csv
import json
from contextlib import suppress

import numpy as np
import pytest
from command_line import answer, run
from spooled import NAMES, row_of, spec_of, write_run

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_core import Trajectory
from flerm_core.records.recording import Ending
from tests.support.small_disk import small_file_system

pytestmark = pytest.mark.usefixtures("environment")


def test_tags_names_and_recordings_are_changed_afterwards(sweep, capsys):
    family, recording = sweep
    assert answer(capsys, "tag", recording, "purpose=baseline", "draft=1")["tags"] == {
        "purpose": "baseline",
        "draft": "1",
    }
    code, out, _ = run(capsys, "tag", recording, "--remove", "draft")
    assert (code, out) == (0, f"{recording}: purpose=baseline\n")
    assert answer(capsys, "rename", family, f"{family}-b")["recordings"] == 3
    assert answer(capsys, "delete", recording, "--yes") == {"id": recording, "rows": 2}
    assert len(answer(capsys, "recordings", f"{family}-b")) == 2
    code, _, err = run(capsys, "delete", recording, "--yes")
    assert code == 3 and "is not in this registry" in err


def test_families(sweep, capsys):
    family, _ = sweep
    (found,) = answer(capsys, "families", family)
    assert (found["name"], found["recordings"], found["learning_rates"]) == (
        family,
        3,
        [1e-3, 2e-3, 4e-3],
    )
    code, out, _ = run(capsys, "families", family)
    assert code == 0 and family in out and "0.001, 0.002, 0.004" in out
    assert run(capsys, "families", "no-such-prefix")[1] == "no families yet\n"


def test_listings_are_bounded_and_say_so(sweep, capsys, monkeypatch):
    family, _ = sweep
    for command in (["recordings", family], ["families", family.split("/")[0]]):
        whole = answer(capsys, *command, "--all")
        code, out, said = run(capsys, *command, "--jsonl", "--all")
        assert code == 0
        assert [json.loads(line) for line in out.splitlines()] == whole
        assert not said
        assert answer(capsys, *command, "--limit", str(len(whole))) == whole
    monkeypatch.setattr("flerm_client.cli.common.LISTED", 2)
    _, out, said = run(capsys, "recordings", family, "--jsonl")
    assert len(out.splitlines()) == 2
    assert said == "flerm: these are the first 2; --limit N lists more, --all lists all\n"


def test_a_listing_takes_any_limit(sweep, capsys):
    _, everything, _ = run(capsys, "recordings", sweep[0], "--all")
    assert run(capsys, "recordings", sweep[0], "--limit", str(10**20)) == (0, everything, "")


def test_a_family_of_many_rates_takes_a_line_of_usual_length(start_registry, capsys):
    address = f"grpc://{start_registry().grpc}"
    with RegistryClient(address) as client:
        for at in range(20):
            client.start_recording("search", 1e-3 * (1 + at), ["a"], [(1,)])
    _, out, _ = run(capsys, "families", "-r", address)
    assert "20 from 0.001 to 0.02" in out
    assert len(answer(capsys, "families", "-r", address)[0]["learning_rates"]) == 20


def test_recordings(sweep, capsys):
    family, recording_id = sweep
    assert [each["lr"] for each in answer(capsys, "recordings", family, "--lr-min", "2e-3")] == [
        4e-3,
        2e-3,
    ]
    assert len(answer(capsys, "recordings", family, "--limit", "1")) == 1
    code, out, _ = run(capsys, "recordings", family)
    assert code == 0 and recording_id in out


def test_show(sweep, capsys):
    _, recording_id = sweep
    shown = answer(capsys, "show", recording_id)
    assert (shown["status"], shown["names"]) == ("completed", list(NAMES))
    assert shown["trajectory"][1] == {
        "step": 101,
        "loss": pytest.approx(1 / 101),
        "fslr": [101.0, 202.0, None],
    }
    code, out, _ = run(capsys, "show", recording_id, "--pattern", "*.bias")
    assert code == 0 and "0.bias" in out and "0.weight" not in out


def test_show_reads_a_spool_file(tmp_path, capsys):
    path = write_run(tmp_path, spec_of("mlp"), [1, 2], registry="grpc://h:1")
    shown = answer(capsys, "show", str(path))
    assert (shown["family"], shown["rows"], shown["status"]) == ("mlp", 2, "completed")
    assert "for grpc://h:1" in shown["notes"][0]


def test_show_says_what_the_run_said_at_its_end(tmp_path, capsys):
    ending = Ending(remarks=("2 tensors were clamped: a, b",))
    path = write_run(tmp_path, spec_of("mlp"), [], ending=ending)
    assert answer(capsys, "show", str(path))["remarks"] == list(ending.remarks)
    code, out, _ = run(capsys, "show", str(path))
    assert code == 0 and "2 tensors were clamped: a, b" in out


def test_best(sweep, capsys):
    family, _ = sweep
    assert answer(capsys, "best", family)["lr"] == 2e-3
    code, out, _ = run(capsys, "best", family)
    assert code == 0 and f"{family}: use lr 0.002" in out and "next: lr" in out


def test_best_suggests_what_a_tuner_tries_next(sweep, capsys):
    family, _ = sweep
    assert main(["best", family, "--suggest"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"rates", "settled", "lr", "why"}
    assert told["settled"] == (not told["rates"])


def test_targets(sweep, capsys):
    family, recording_id = sweep
    found = answer(capsys, "targets", family, "2e-3", "--step", "101")
    assert (found["sources"], found["targets"]["0.weight"]) == ([recording_id], 101.0)
    code, out, _ = run(capsys, "targets", family, "2e-3")
    assert code == 0 and "0.bias" in out


def test_check_compares_a_model_before_money_is_spent(sweep, tmp_path, capsys):
    family, recording_id = sweep
    shapes = [(16, 4), (16,), (3, 16)]
    Trajectory(NAMES, shapes, [1], [[4.0, np.nan, 2.0]]).save(tmp_path / "wide.npz")
    report = answer(capsys, "check", family, str(tmp_path / "wide.npz"), "--lr", "2e-3")
    assert report["multipliers"]["0.weight"] == 0.25
    assert "0.bias" in report["unmeasured"]
    # The same sentences for a user, for a program, and of the family itself.
    of_family = answer(capsys, "best", family)["cautions"]
    assert of_family[0].startswith("The base has one seed") and len(of_family) == 2
    assert set(of_family) < set(report["cautions"])
    assert any(
        each.startswith("The base's recordings do not all say") for each in report["cautions"]
    )
    out = run(capsys, "check", family, str(tmp_path / "wide.npz"), "--lr", "2e-3")[1]
    assert [f"caution: {each}" in out for each in report["cautions"]] == [True] * len(
        report["cautions"]
    )
    wide = ("check", family, str(tmp_path / "wide.npz"), "--lr", "2e-3", "--batch-size", "1024")
    code, _, err = run(capsys, *wide)
    assert code == 2 and "set the tag batch_size of these recordings (flerm tag)" in err
    assert run(capsys, "tag", recording_id, "batch_size=64")[0] == 0
    report = answer(capsys, *wide)
    assert report["multipliers"]["0.weight"] == 2 * 0.25
    assert report["remarks"][0].startswith("batch size 1024 in 101 steps, where the base has 64")
    names = tmp_path / "names.txt"
    names.write_text("\n".join([*NAMES, "head.weight"]))
    code, _, err = run(capsys, "check", family, str(names), "--lr", "2e-3")
    assert code == 3 and "head.weight" in err
    other = write_run(tmp_path, spec_of("mine", optimizer="SGD"), [1])
    code, out, _ = run(capsys, "check", family, str(other), "--lr", "2e-3")
    assert code == 5 and "the model's is SGD, the targets' Adam" in out


def test_export(sweep, tmp_path, capsys):
    _, recording_id = sweep
    for ending in ("npz", "csv", "json"):
        assert run(capsys, "export", recording_id, str(tmp_path / f"out.{ending}"))[0] == 0
    loaded = Trajectory.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(loaded.values, np.stack([row_of(1).values, row_of(101).values]))
    with (tmp_path / "out.csv").open() as opened:
        table = list(csv.reader(opened))
    assert table[0] == ["step", "loss", "learning_rate", "tokens", *NAMES]
    assert table[2][0] == "101" and table[2][4:] == ["101.0", "202.0", ""]
    assert json.loads((tmp_path / "out.json").read_text())["rows"][1]["fslr"] == [
        101.0,
        202.0,
        None,
    ]
    code, _, err = run(capsys, "export", recording_id, "out.xls")
    assert code == 2 and "allowed are .npz, .csv, .json" in err


@pytest.mark.parametrize("ending", ["npz", "csv", "json"])
def test_an_export_to_a_full_disk_leaves_the_file_that_was_there(sweep, tmp_path, capsys, ending):
    with small_file_system(tmp_path / "disk", megabytes=1) as disk:
        file = disk / f"base.{ending}"
        assert run(capsys, "export", sweep[1], str(file))[0] == 0
        before = file.read_bytes()
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        code, _, err = run(capsys, "export", sweep[1], str(file))
        assert code == 2 and f"{file} cannot be written (No space left on device)" in err
        assert file.read_bytes() == before
        assert sorted(each.name for each in disk.iterdir()) == ["ballast", file.name]


def test_doctor(sweep, capsys, tmp_path):
    found = {each["what"]: each["state"] for each in answer(capsys, "doctor")}
    assert (found["network"], found["server"]) == ("ok", "ok")
    code, out, _ = run(capsys, "doctor", "--registry", "grpc://127.0.0.1:1")
    assert code == 1 and "does not accept connections" in out
    code, out, _ = run(capsys, "doctor", "--registry", "localhost")
    assert code == 1 and "'localhost' is no address" in out
