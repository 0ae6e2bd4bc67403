"""A database file that is named by a symbolic link, as where it lies on another disk."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flerm_client import RegistryClient
from flerm_core.errors import Refused
from flerm_core.records.queries import RecordingFilter
from flerm_server.cli import app
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine
from flerm_server.store.sql.store import open_store
from tests.conftest import StartRegistry
from tests.server.samples import spec


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link in a folder of its own to a file that is not there yet."""
    for name in ("named", "disk"):
        (tmp_path / name).mkdir()
    link = tmp_path / "named" / "runs.db"
    link.symlink_to(tmp_path / "disk" / "runs.db")
    return link


def record(url: str) -> str:
    sent = spec("linked")
    with closing(open_store(url)) as store:
        store.start(sent)
    return sent.id


def recorded(url: str) -> set[str]:
    with closing(open_store(url)) as store:
        return {each.spec.id for each in store.recordings(RecordingFilter()).items}


def command(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["db", *map(str, arguments)])
    return done.exit_code, done.stdout + done.stderr


def test_what_a_killed_server_recorded_is_found_by_the_files_own_name(
    link: Path, start_registry: StartRegistry
):
    real = f"sqlite:///{link.resolve()}"
    first = record(real)
    registry = start_registry(db=f"sqlite:///{link}")
    with RegistryClient(registry.address) as client:
        second = client.start_recording("linked", 1e-3, ["a"], [(1,)])
    registry.stop(signal.SIGKILL)
    assert recorded(real) == {first, second}
    assert list(link.parent.iterdir()) == [link]  # lock and log lie beside the file


def test_a_file_in_use_under_its_own_name_is_not_restored_by_a_link(link: Path, tmp_path: Path):
    real = f"sqlite:///{link.resolve()}"
    record(real)
    copy = tmp_path / "copy.db"
    assert command("backup", copy, "--db", real)[0] == 0
    with closing(open_store(real)) as store:
        store.info()
        code, said = command("restore", copy, "--db", f"sqlite:///{link}")
        assert (code, "is using it" in said) == (5, True)


def test_a_restore_puts_the_copy_where_the_link_leads(link: Path, tmp_path: Path):
    named = f"sqlite:///{link}"
    first = record(named)
    copy = tmp_path / "copy.db"
    assert command("backup", copy, "--db", named)[0] == 0
    record(named)
    assert command("restore", copy, "--db", named)[0] == 0
    assert link.is_symlink()
    assert recorded(f"sqlite:///{link.resolve()}") == recorded(named) == {first}


def test_a_link_to_a_network_file_system_is_refused(
    link: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from flerm_server.store.sql import engine

    mounts = tmp_path / "mounts"
    mounts.write_text(f"root / ext4 rw 0 0\nserver:/x {link.resolve().parent} nfs4 rw 0 0\n")
    refuse = engine.refuse_network_file_system
    monkeypatch.setattr(engine, "refuse_network_file_system", lambda file: refuse(file, mounts))
    with pytest.raises(Refused, match="network file system"):
        open_engine(parse_url(f"sqlite:///{link}"))


def test_a_link_that_leads_elsewhere_is_noticed(link: Path, tmp_path: Path):
    named = f"sqlite:///{link}"
    first = record(named)
    other = f"sqlite:///{tmp_path}/other.db"
    second = record(other)
    with closing(open_store(named)) as store:
        assert [each.spec.id for each in store.recordings(RecordingFilter()).items] == [first]
        link.unlink()
        link.symlink_to(tmp_path / "other.db")
        third = spec("linked")
        store.start(third)
    assert recorded(other) == {second, third.id}
    assert recorded(f"sqlite:///{tmp_path}/disk/runs.db") == {first}
