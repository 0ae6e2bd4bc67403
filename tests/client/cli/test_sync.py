"""`flerm sync`: what it sends, what it leaves, and the code it ends with."""

from __future__ import annotations

import os
import time

import pytest
from gate import Gate
from spooled import spec_of, write_run

from flerm_client import RegistryClient
from flerm_client.cli import main


@pytest.fixture
def gate(registry):
    """The registry behind a front that can refuse."""
    gate = Gate(registry.grpc)
    yield gate
    gate.close()


def test_a_refused_token_ends_with_5_and_keeps_the_file(gate, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLERM_TOKEN", "old")
    gate.behave(token="new")
    path = write_run(tmp_path, spec_of("sync-token"), [1], registry=gate.address)
    assert main(["sync", "--spool", str(tmp_path)]) == 5
    assert "failed, 0 measurements (the token has expired)" in capsys.readouterr().out
    assert path.exists()
    monkeypatch.setenv("FLERM_TOKEN", "new")
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert not path.exists()


def test_of_a_refused_token_and_an_unreachable_registry_the_refusal_is_told(gate, tmp_path):
    gate.behave(token="new")
    write_run(tmp_path, spec_of("sync-both"), [1], registry=gate.address)
    write_run(tmp_path, spec_of("sync-both"), [1], registry="grpc://127.0.0.1:1")
    assert main(["sync", "--spool", str(tmp_path)]) == 5


def test_a_file_that_holds_nothing_is_removed_once_nobody_can_be_writing_it(tmp_path, capsys):
    empty = tmp_path / f"{'0' * 8}.spool"
    empty.touch()
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert empty.exists() and "in use" in capsys.readouterr().out
    an_hour_ago = time.time() - 3600
    os.utime(empty, (an_hour_ago, an_hour_ago))
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert not empty.exists() and "it is empty" in capsys.readouterr().out


def test_a_long_transfer_tells_how_far_it_is(registry, tmp_path):
    spec = spec_of("sync-progress")
    write_run(tmp_path, spec, range(1, 401), registry=registry.address)
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    told: list[tuple[int, int]] = []
    with RegistryClient(registry.address) as client:
        assert (
            len(
                client.trajectory(
                    spec.id, progress=lambda arrived, total: told.append((arrived, total))
                )
            )
            == 400
        )
    assert told[0] == (0, 400) and told[-1] == (400, 400)


def test_the_shell_completes_commands(capsys, monkeypatch):
    for name, value in {
        "_FLERM_COMPLETE": "complete_bash",
        "COMP_WORDS": "flerm fam",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["flerm"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == ["families"]
