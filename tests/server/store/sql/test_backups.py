"""Copies of a database: made, refused, put back; and what happens when that is interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flerm_client import RegistryClient
from flerm_core.errors import InvalidInput, Refused
from flerm_server.cli import app
from flerm_server.store.sql.backups import restore
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.store import open_store
from tests.conftest import PostgresCluster, StartRegistry, postgres_tool
from tests.server.conftest import migrate
from tests.server.samples import batch, rows, spec

LONG = 400  # rows: more than fits into what SQLite writes at once


def command(*arguments: str | Path, db: str) -> str:
    """Runs `flerm db`; what it says on stdout. Fails with what it says on stderr."""
    done = CliRunner().invoke(app, ["db", *map(str, arguments), "--db", db])
    assert done.exit_code == 0, f"{done.exit_code} {done.stderr}"
    return done.stdout


def refusal(*arguments: str | Path, db: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["db", *map(str, arguments), "--db", db])
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr


def record(url: str, count: int) -> str:
    """A recording of `count` rows; its id."""
    store = open_store(url)
    sent = spec("restored")
    store.start(sent)
    store.append_many([batch(sent.id, *rows(*range(1, count + 1)))])
    store.close()
    return sent.id


def recorded(url: str) -> dict[str, int]:
    """The rows of each recording, all of them read."""
    from flerm_core.records.queries import RecordingFilter

    store = open_store(url)
    found = {}
    for each in store.all_recordings(RecordingFilter()):
        assert len(store.trajectory(each.spec.id).steps) == each.rows
        found[each.spec.id] = each.rows
    store.close()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def db(folder: Path) -> str:
    return f"sqlite:///{folder}/runs.db"


@pytest.fixture
def killed(start_registry: StartRegistry, folder: Path, db: str) -> tuple[Path, dict[str, int]]:
    """A backup and what it has; the server was killed after it had recorded more."""
    registry = start_registry(db=db)
    copy = folder / "monday.db"
    with RegistryClient(registry.address) as client:
        first = client.start_recording("f", 1e-3, ["a", "b"], [(1,), (1,)], seed=1)
        client.append(first, list(range(1, 21)), [[1.0, 2.0]] * 20)
        command("backup", copy, db=db)
        client.delete(first)
        second = client.start_recording("f", 1e-3, ["c"], [(1,)], seed=2)
        client.append(second, list(range(1, 101)), [[3.0]] * 100)
        registry.stop(signal.SIGKILL)
    assert (folder / "runs.db-wal").stat().st_size > 0
    return copy, {first: 20}


def test_a_copy_is_restored_after_a_kill(
    killed: tuple[Path, dict[str, int]], folder: Path, db: str
):
    copy, expected = killed
    (folder / "runs.db").chmod(0o640)
    command("restore", copy, db=db)
    assert recorded(db) == expected
    assert (folder / "runs.db").stat().st_mode & 0o777 == 0o640
    assert not [each.name for each in folder.iterdir() if "restoring" in each.name]
    command("restore", copy, db=db)  # again, over its own result
    assert recorded(db) == expected


@pytest.mark.parametrize("way", ["cp", "mv", ".backup"])
def test_a_file_beside_a_log_of_another_one_is_refused(
    killed: tuple[Path, dict[str, int]], folder: Path, db: str, way: str
):
    copy, expected = killed
    file = folder / "runs.db"
    if way == ".backup":
        (folder / "runs.db-wal").rename(folder / "log")
        with sqlite3.connect(file) as source, sqlite3.connect(folder / "other.db") as destination:
            source.backup(destination)
        source.close()
        destination.close()
        copy_of_now = folder / "other.db"
        (folder / "log").rename(folder / "runs.db-wal")
        shutil.copy(copy_of_now, file)
    elif way == "cp":
        shutil.copy(copy, file)
    else:
        (folder / "again.db").write_bytes(copy.read_bytes())
        (folder / "again.db").rename(file)
    before = {each.name: each.read_bytes() for each in folder.glob("runs.db*")}
    before.pop("runs.db.lock")
    for action in ("check", "upgrade"):
        code, said = refusal(action, db=db)
        assert code == 5
        assert "the log runs.db-wal beside it belongs to another file" in said
        assert "flerm db restore" in said
    assert {name: (folder / name).read_bytes() for name in before} == before
    command("restore", copy, db=db)
    assert recorded(db) == expected


def test_a_restore_is_refused_while_the_file_is_in_use(
    start_registry: StartRegistry, folder: Path, db: str
):
    sent = record(db, 3)
    command("backup", folder / "copy.db", db=db)
    registry = start_registry(db=db)
    code, said = refusal("restore", folder / "copy.db", db=db)
    assert (code, "stop it, then restore" in said) == (5, True)
    with RegistryClient(registry.address) as client:
        assert client.recording(sent).rows == 3
    assert registry.stop() == 0
    other = sqlite3.connect(folder / "runs.db")  # a program that knows nothing of the lock file
    other.execute("SELECT * FROM recordings").fetchall()
    program = [sys.executable, "-m", "flerm_server.cli", "db", "restore", folder / "copy.db"]
    done = subprocess.run([*program, "--db", db], check=False, capture_output=True, text=True)
    assert (done.returncode, "stop it, then restore" in done.stderr) == (5, True), done.stderr
    other.close()
    command("restore", folder / "copy.db", db=db)


def test_what_is_no_copy_of_a_registry_is_refused(folder: Path, db: str):
    sent = record(db, LONG)
    good = folder / "good.db"
    command("backup", good, db=db)
    damaged, other, text = folder / "damaged.db", folder / "other.db", folder / "text.db"
    content = bytearray(good.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 9000] = bytes(9000)
    damaged.write_bytes(content)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE cats (name)")
    connection.close()
    text.write_text("no database at all, " * 100)
    for source, code, sentence in (
        (damaged, 5, "damaged"),
        (other, 5, "not a registry's database"),
        (text, 5, "not a database"),
        (folder / "none.db", 3, "no such file"),
        (folder / "runs.db", 2, "the database itself"),
    ):
        found, said = refusal("restore", source, db=db)
        assert (found, sentence in said) == (code, True), said
    assert recorded(db) == {sent: LONG}
    code, said = refusal("restore", good, db="postgresql://u:secret@h/d?password=secret")
    assert (code, "pg_restore" in said, "secret" in said) == (2, True, False)


STEP_BY_STEP = """
import os, sys
from pathlib import Path
from flerm_server.store.sql import backups
from flerm_server.store.sql.database_url import parse_url
left = int(sys.argv[3])
def stop_at(frame, event, argument):
    global left
    if frame.f_code.co_filename == backups.__file__ and event == "line":
        left -= 1
        if left == 0:
            os._exit(9)
    return stop_at
sys.settrace(stop_at)
backups.restore(parse_url(sys.argv[1]), Path(sys.argv[2]))
os._exit(0)
"""


ONE_BY_ONE = pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])


def test_a_copy_of_a_newer_version_leaves_what_this_one_can_serve(folder: Path, db: str):
    record(db, 3)
    before = recorded(db)
    copy = folder / "newer.db"
    command("backup", copy, db=db)
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9990'")
        connection.execute("UPDATE schema_support SET oldest_server = '9990'")
        connection.commit()
    code, said = refusal("restore", copy, db=db)
    assert code == 5
    assert "9990" in said and "install a newer flerm" in said and "nothing was changed" in said
    assert recorded(db) == before
    # A newer schema that this version can serve is no hindrance.
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("UPDATE schema_support SET oldest_server = '0001'")
        connection.commit()
    command("restore", copy, db=db)
    assert recorded(db) == before


@pytest.mark.parametrize("stride", [37, ONE_BY_ONE])
def test_a_restore_that_is_killed_anywhere_leaves_the_old_or_the_new(
    killed: tuple[Path, dict[str, int]], folder: Path, stride: int
):
    """The process ends before the nth line of the restore, for every n."""
    copy, expected = killed
    seen = set()
    ended, at = 9, 1
    while ended == 9:
        trial = folder / f"trial-{at}"
        trial.mkdir()
        for each in folder.glob("runs.db*"):
            shutil.copy(each, trial / each.name)
        url = f"sqlite:///{trial}/runs.db"
        program = [sys.executable, "-c", STEP_BY_STEP, url, str(copy), str(at)]
        ended = subprocess.run(program, check=False).returncode
        assert ended in (0, 9)
        found = recorded(url)
        assert found == expected or list(found.values()) == [100]
        seen.add(found == expected)
        shutil.rmtree(trial)
        at += stride
    assert seen == {True, False}


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MiB. Fails, not skips, where none may be mounted."""
    disk = folder / "small"
    disk.mkdir()
    as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
    options = f"size=1m,uid={os.getuid()},gid={os.getgid()}"
    subprocess.run([*as_root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    yield disk
    subprocess.run([*as_root, "umount", "--lazy", disk], check=True)


def test_a_copy_for_which_there_is_no_room_leaves_nothing(folder: Path, db: str, small_disk: Path):
    with sqlite3.connect(folder / "runs.db") as connection:
        connection.execute("CREATE TABLE ballast (content)")
        connection.execute("INSERT INTO ballast VALUES (zeroblob(2000000))")
    connection.close()
    command("upgrade", db=db)
    sent = record(db, 3)
    code, said = refusal("backup", small_disk / "copy.db", db=db)
    assert (code, "full" in said) == (5, True), said
    assert not list(small_disk.iterdir())
    code, said = refusal("backup", folder / "none" / "copy.db", db=db)
    assert (code, "cannot be written" in said) == (5, True), said
    command("backup", folder / "copy.db", db=db)
    small = f"sqlite:///{small_disk}/runs.db"
    code, said = refusal("restore", folder / "copy.db", db=small)
    assert (code, "full" in said) == (5, True), said
    assert [each.name for each in small_disk.iterdir()] == ["runs.db.lock"]
    assert recorded(db) == {sent: 3}


def test_a_postgresql_registry_is_restored_under_its_name(
    start_registry: StartRegistry, postgres: PostgresCluster, folder: Path
):
    """As docs/registry.md says it: into a database beside, which then takes the old one's name."""
    url = migrate(postgres.new_database())
    name = url.rpartition("/")[2]
    admin = url.rpartition("/")[0] + "/postgres"
    kept = record(url, 20)
    dump = folder / "monday.dump"
    registry = start_registry(db=url)
    with dump.open("wb") as file:
        subprocess.run([postgres_tool("pg_dump"), "--format=custom", url], check=True, stdout=file)
    record(url, 5)
    assert registry.stop(signal.SIGKILL) == -signal.SIGKILL
    psql = [postgres_tool("psql"), "--quiet", "--set", "ON_ERROR_STOP=1", admin, "--command"]
    subprocess.run([*psql, f"CREATE DATABASE {name}_restored ENCODING 'UTF8' TEMPLATE template0"],
                   check=True)  # fmt: skip
    load = [postgres_tool("pg_restore"), "--exit-on-error", "--single-transaction", "--no-owner"]
    subprocess.run([*load, f"--dbname={url}_restored", dump], check=True)
    for change in (f"{name} RENAME TO {name}_old", f"{name}_restored RENAME TO {name}"):
        subprocess.run([*psql, f"ALTER DATABASE {change}"], check=True)
    assert recorded(url) == {kept: 20}
    with RegistryClient(start_registry(db=url).address) as client:
        new = client.start_recording("f", 1e-3, ["c"], [(1,)], seed=2)
        client.append(new, [1], [[3.0]])
        assert client.recording(kept).rows == 20


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        (
            ("CREATE TRIGGER t AFTER INSERT ON families BEGIN DELETE FROM tokens; END",),
            "no registry made the trigger 't' in",
        ),
        (
            (
                "ALTER TABLE kinds RENAME TO others",
                "CREATE VIEW kinds AS SELECT * FROM others",
            ),
            "no registry made the view 'kinds' in",
        ),
        (("INSERT INTO alembic_version VALUES ('0003')",), "one revision of four digits"),
        (("UPDATE alembic_version SET version_num = x'ff00'",), "one revision of four digits"),
        (("DELETE FROM schema_support",), "the table schema_support of the database has no"),
    ],
)
def test_what_no_registry_made_is_refused(tmp_path: Path, statements: Sequence[str], sentence: str):
    file = tmp_path / "hostile.db"
    open_store(f"sqlite:///{file}").close()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    with pytest.raises(Refused, match=sentence):
        open_store(f"sqlite:///{file}")
    if sentence.startswith("no registry"):
        target = tmp_path / "runs.db"
        with pytest.raises(Refused, match=sentence):
            restore(parse_url(f"sqlite:///{target}"), file)
        assert not target.exists()


def test_a_database_is_a_plain_file(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.db")
    (tmp_path / "zero.db").symlink_to("/dev/zero")
    for name in ("fifo.db", "zero.db", ""):
        with pytest.raises((Refused, InvalidInput), match="no plain file"):
            open_store(f"sqlite:///{tmp_path / name}")
