"""`flerm sync`: what it sends, what it leaves, and the code it ends with."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from gate import Gate
from spooled import NAMES, SHAPES, spec_of, write_run

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_client.spool import SpoolWriter, quarantined
from flerm_client.spool.writer import file_name
from flerm_core.records.recording import Attempt, Ending, now
from tests.support.small_disk import small_file_system


@pytest.fixture
def gate(registry):
    """The registry behind a front that can refuse."""
    gate = Gate(registry.grpc)
    yield gate
    gate.close()


def test_a_refused_token_ends_with_5_and_keeps_the_file(gate, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLERM_REGISTRY", gate.address)
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


def test_on_a_full_disk_what_is_refused_holds_up_nothing(registry, tmp_path, capsys):
    """The delivery of the other files is what makes room."""
    refused, sent = spec_of("sync-full", 1e-2), spec_of("sync-full", 2e-2)
    with RegistryClient(registry.address) as client:
        client.start_recording("sync-other", 1e-2, NAMES, SHAPES, recording_id=refused.id)
    with small_file_system(tmp_path / "disk", megabytes=1) as disk:
        disk.chmod(0o700)
        first = write_run(disk, refused, [1], registry=registry.address)
        os.utime(first, (1, 1))
        write_run(disk, sent, [1, 2], registry=registry.address)
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        assert main(["sync", "--spool", str(disk), "--json"]) == 5
        files = json.loads(capsys.readouterr().out)["files"]
        assert [(each["outcome"], each["rows"]) for each in files] == [
            ("refused", 0),
            ("delivered", 2),
        ]
        assert [path.name for path, _ in quarantined(disk)] == [first.name]
        assert sorted(each.name for each in disk.iterdir()) == ["ballast", "quarantine"]
    with RegistryClient(registry.address) as client:
        assert client.recording(sent.id).status == "completed"


def test_a_file_that_holds_nothing_is_removed_once_nobody_can_be_writing_it(tmp_path, capsys):
    empty = tmp_path / f"{'0' * 8}.spool"
    empty.touch()
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert empty.exists() and "in use" in capsys.readouterr().out
    an_hour_ago = time.time() - 3600
    os.utime(empty, (an_hour_ago, an_hour_ago))
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert not empty.exists() and "the file is empty" in capsys.readouterr().out


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


def test_a_run_that_was_offline_keeps_its_start_and_its_end(registry, tmp_path):
    """One that ended half an hour after its start, and one whose process died then."""
    begun = now() - timedelta(days=3)
    ended = begun + timedelta(minutes=30)
    whole, broken = spec_of("sync-offline"), spec_of("sync-offline", seed=1)
    attempt = Attempt(started_at=begun)
    write_run(
        tmp_path,
        whole,
        [1],
        registry=registry.address,
        attempt=attempt,
        ending=Ending(finished_at=ended),
    )
    child = os.fork()
    if child == 0:
        SpoolWriter(tmp_path, registry.address).start(broken, attempt)
        os._exit(0)
    os.waitpid(child, 0)
    os.utime(tmp_path / file_name(broken.id, attempt.id), (ended.timestamp(),) * 2)
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    with RegistryClient(registry.address) as client:
        for spec, status in ((whole, "completed"), (broken, "interrupted")):
            found = client.recording(spec.id)
            assert (found.status, found.created_at) == (status, begun)
            assert abs(found.finished_at - ended) < timedelta(milliseconds=1)  # of a float
            assert found.updated_at > ended


@pytest.mark.parametrize("configured", ["", "grpcs://registry.example:50051"])
def test_the_token_goes_to_no_registry_that_only_a_file_names(
    gate, tmp_path, capsys, monkeypatch, configured
):
    monkeypatch.setenv("FLERM_REGISTRY", configured)
    monkeypatch.setenv("FLERM_TOKEN", "mine")
    gate.behave(token="mine")
    path = write_run(tmp_path, spec_of("sync-thief"), [1], registry=gate.address)
    assert main(["sync", "--spool", str(tmp_path)]) == 5
    said = capsys.readouterr().out
    assert f"the token was not sent: only --registry {gate.address} or FLERM_REGISTRY" in said
    assert path.exists()
    assert main(["sync", "--spool", str(tmp_path), "--registry", f"{gate.address}/"]) == 0
    assert not path.exists()


def test_no_token_travels_where_others_could_read_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLERM_TOKEN", "mine")
    write_run(tmp_path, spec_of("sync-open"), [1], registry="")
    asked = ["sync", "--spool", str(tmp_path), "--registry", "grpc://127.0.0.1.example.org:1"]
    assert main(asked) == 5
    assert "use grpcs:// or, in a network that you trust, set FLERM_INSECURE=1" in (
        capsys.readouterr().out
    )
    monkeypatch.setenv("FLERM_INSECURE", "1")
    assert main(asked) == 4  # it was tried


def test_a_folder_that_others_may_write_to_is_not_sent(tmp_path, capsys):
    write_run(tmp_path, spec_of("sync-shared"), [1], registry="grpc://127.0.0.1:1")
    tmp_path.chmod(0o770)
    assert main(["sync", "--spool", str(tmp_path)]) == 2
    assert "can be written by other users (mode 0770)" in capsys.readouterr().err


def test_links_and_files_of_others_are_left_alone(tmp_path, capsys):
    spool = tmp_path / "spool"
    path = write_run(spool, spec_of("sync-link"), [1], registry="grpc://127.0.0.1:1")
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    os.mkfifo(spool / f"{'1' * 8}.spool")  # to read it would wait for ever
    assert main(["sync", "--spool", str(spool)]) == 0
    assert "nothing is left" in capsys.readouterr().out
    if os.geteuid() == 0:
        path.unlink()
        (tmp_path / path.name).rename(path)
        os.chown(path, 65534, 65534)
        assert main(["sync", "--spool", str(spool)]) == 0
        assert "belongs to another user" in capsys.readouterr().out and path.exists()


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


def test_a_folder_registry_is_sent_and_kept(registry, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FLERM_REGISTRY", raising=False)
    folder = tmp_path / "runs"
    path = write_run(folder, spec_of("sync-folder"), [1], registry=folder.as_uri())
    assert main(["sync", "--spool", str(folder)]) == 0
    assert "kept" in capsys.readouterr().out
    assert main(["sync", "--spool", str(folder), "-r", registry.address]) == 0
    assert "delivered, 1 measurement\n" in capsys.readouterr().out
    assert path.exists()


def test_a_registry_that_is_down_ends_with_4_and_loses_nothing(tmp_path, capsys):
    path = write_run(tmp_path, spec_of("mlp"), [1], registry="grpc://127.0.0.1:1")
    assert main(["sync", "--spool", str(tmp_path)]) == 4
    assert "failed" in capsys.readouterr().out
    assert path.exists()
