"""Renaming, tagging, deleting, pruning; where a database may be, and restoring one."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from flerm_client.registry.client import RegistryClient
from flerm_core.errors import AlreadyExists, InvalidInput, NotFound, Refused
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Ending, ParameterList, now
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_server.cli import app
from flerm_server.store.interface import Appended, Batch, Store
from flerm_server.store.sql import prune
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine, refuse_network_file_system, transaction
from flerm_server.store.sql.store import open_store
from flerm_server.store.sql.tables import attempts, measurements, recording_tags
from tests.conftest import PostgresCluster, postgres_tool
from tests.server.conftest import Backend, migrate
from tests.server.samples import attempt, batch, family, row, rows, spec
from tests.support.small_disk import small_file_system


def test_a_family_is_renamed_with_its_recordings(store: Store):
    old, new = family(), family()
    sent = spec(old)
    store.start(sent)
    assert store.rename_family(old, new).recordings == 1
    assert store.rename_family(old, new).name == new  # sent again
    assert store.recording(sent.id).spec.family == new
    assert not store.recordings(RecordingFilter(family=old)).items
    with pytest.raises(NotFound):
        store.rename_family(old, family())
    store.register_family(old)
    with pytest.raises(AlreadyExists, match="exists already"):
        store.rename_family(old, new)
    with pytest.raises(InvalidInput, match="another name than best"):
        store.rename_family(old, "team/best")


def test_a_job_goes_on_under_the_name_that_its_family_had_before_a_rename(store: Store):
    """Its uploader sends the start again, and a resume opens an attempt, both by the old name."""
    old, new = family(), family()
    sent = spec(old)
    first = attempt(0, 1)
    store.start(sent, first)
    store.rename_family(old, new)
    assert not store.start(sent, first).created
    assert store.start(sent, attempt(5, 2)).attempt == 2
    assert store.recording(sent.id).spec.family == new
    store.register_family(old)  # a new family takes the old name
    with pytest.raises(AlreadyExists, match=f"exists with family '{new}', not '{old}'"):
        store.start(sent, first)


def test_tags_are_set_and_removed_afterwards(store: Store):
    sent = spec(family(), tags={"a": "1", "b": "2"})
    store.start(sent)
    store.finish(sent.id, 0, Ending())
    for _ in range(2):
        assert store.tag(sent.id, {"a": "3", "c": "4"}, ["b", "d"]).spec.tags == {
            "a": "3",
            "c": "4",
        }
    assert [
        each.spec.id
        for each in store.recordings(RecordingFilter(tags={"c": "4"}, family=sent.family)).items
    ] == [sent.id]
    with pytest.raises(InvalidInput, match="remove: 'a' is not allowed"):
        store.tag(sent.id, {"a": "1"}, ["a"])
    with pytest.raises(InvalidInput, match="would have 65 tags; at most 64"):
        store.tag(sent.id, {str(at): "" for at in range(63)})
    assert store.recording(sent.id).spec.tags == {"a": "3", "c": "4"}


def test_a_deleted_recording_is_gone_with_all_its_attempts(store: Store):
    sent, other = spec(family(), tags={"a": "1"}), spec(family())
    store.start(sent, attempt(0, 1))
    store.start(other)
    store.append_many([batch(sent.id, *rows(1, 2)), batch(other.id, *rows(1))])
    store.start(sent, attempt(2, 2))
    store.append_many([batch(sent.id, *rows(2))])
    assert store.delete(sent.id) == 3
    assert store.delete(sent.id) == 0
    with pytest.raises(NotFound):
        store.recording(sent.id)
    (answer,) = store.append_many([batch(sent.id, *rows(3))])
    assert isinstance(answer, NotFound)
    assert store.recording(other.id).rows == 1
    assert store.start(sent).created


def test_the_final_step_of_a_run_is_kept(store: Store):
    sent = spec(family())
    store.start(sent)
    store.append_many([batch(sent.id, *rows(1))])
    assert store.recording(sent.id).final_step is None
    assert store.finish(sent.id, 0, Ending(final_step=300)).final_step == 300
    assert store.recordings(RecordingFilter(family=sent.family)).items[0].final_step == 300


def test_auxiliary_values_are_sent_when_they_are_asked_for(backend: Backend):
    sent = spec(family())
    backend.local.start(sent)
    vector = np.array([1, 2, 0.5], np.float32)
    full = row(2, scalars={"sharpness": 12.5}, vectors={"multipliers": vector})
    assert backend.local.append_many([batch(sent.id, row(1), full)]) == [Appended(2, 0)]

    def rows_of(**asked) -> pb.TrajectoryRows:
        request = pb.GetTrajectoryRequest(recording_id=sent.id, **asked)
        _, chunk = backend.remote.stub.GetTrajectory(request, timeout=20)
        return chunk.rows

    plain = rows_of()
    assert (dict(plain.scalars), dict(plain.vectors)) == ({}, {})
    asked = rows_of(auxiliary=True)
    np.testing.assert_array_equal(asked.scalars["sharpness"].values, [np.nan, 12.5])
    table = np.frombuffer(asked.vectors["multipliers"], "<f4").reshape(2, 3)
    np.testing.assert_array_equal(table, [[np.nan] * 3, vector])
    one = rows_of(auxiliary=True, pattern="readout.*")
    np.testing.assert_array_equal(
        np.frombuffer(one.vectors["multipliers"], "<f4"), np.array([np.nan, 0.5], np.float32)
    )


def test_many_auxiliary_vectors_come_in_bounded_messages(sqlite_backend: Backend):
    width, steps = 2000, range(1, 41)
    names = tuple(f"layers.{at}.weight" for at in range(width))
    sent = spec(
        family(), parameters=ParameterList(names, ((1,),) * width, ("feed-forward",) * width)
    )
    sqlite_backend.local.start(sent)
    vectors = {f"vector-{at}": np.full(width, at, np.float32) for at in range(16)}
    written = [
        row(step, *[1.0] * width, vectors=vectors, scalars={f"only at {step}": 1.0})
        for step in steps
    ]
    sqlite_backend.local.append_many([batch(sent.id, *written)])
    with RegistryClient(f"grpc://{sqlite_backend.server.grpc_address.text}") as client:
        found = client.auxiliary(sent.id)
    assert found.steps.tolist() == list(steps)
    for name, vector in vectors.items():
        np.testing.assert_array_equal(found.vectors[name], np.tile(vector, (len(steps), 1)))
    for step in steps:
        assert np.flatnonzero(~np.isnan(found.scalars[f"only at {step}"])).tolist() == [step - 1]


@pytest.mark.slow
def test_one_tensor_over_very_many_steps_comes_in_bounded_messages(sqlite_backend: Backend):
    sent = spec(family(), parameters=ParameterList(("weight",), ((1,),), ("feed-forward",)))
    sqlite_backend.local.start(sent)
    blank = [None] * 1000
    for first in range(1, 140_000, 1000):
        block = MeasurementBatch(
            steps=range(first, first + 1000),
            fslr=[np.float32(1).tobytes()] * 1000,
            losses=blank,
            learning_rates=blank,
            tokens=blank,
            measured_at=blank,
            auxiliary=blank,
        )
        assert sqlite_backend.local.append_many([Batch(sent.id, block)]) == [Appended(1000, 0)]
    with RegistryClient(f"grpc://{sqlite_backend.server.grpc_address.text}") as client:
        assert client.trajectory(sent.id).steps.tolist() == list(range(1, 140_001))


def test_old_recordings_are_pruned(tmp_path: Path):
    db = f"sqlite:///{tmp_path}/registry.db"
    store = open_store(db)
    kept, gone = spec("pruned"), spec("pruned")
    for each in (kept, gone):
        store.start(each)
        store.append_many([batch(each.id, *rows(1, 2))])
    store.finish(gone.id, 0, Ending(status="failed"))

    def prune(*options: str) -> str:
        return CliRunner().invoke(app, ["db", "prune", "--db", db, *options]).stdout

    assert prune("--older-than", "1") == "deleted 0 recordings with 0 rows\n"
    assert (
        prune("--older-than", "0", "--status", "failed", "--dry-run")
        == "would delete 1 recordings with 2 rows\n"
    )
    assert prune("--older-than", "0", "--status", "failed") == "deleted 1 recordings with 2 rows\n"
    assert [each.spec.id for each in store.recordings(RecordingFilter()).items] == [kept.id]
    store.close()


def test_what_was_pruned_is_told_where_the_disk_has_no_room_for_vacuum(tmp_path: Path):
    names = tuple(f"layers.{at}.weight" for at in range(2000))
    wide = ParameterList(names, ((1,),) * 2000, ("other",) * 2000)
    kept, gone = spec("kept", parameters=wide), spec("gone", parameters=wide)
    with small_file_system(tmp_path / "disk", megabytes=32) as disk:
        db = f"sqlite:///{disk}/registry.db"
        store = open_store(db)
        for each, count in ((kept, 900), (gone, 300)):
            store.start(each)
            store.append_many([batch(each.id, *(row(at, *np.ones(2000)) for at in range(count)))])
        store.close()
        free = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - (4 << 20)))
        done = CliRunner().invoke(
            app, ["db", "prune", "--db", db, "--older-than", "0", "--family", "gone"]
        )
        assert (done.exit_code, done.stdout) == (0, "deleted 1 recordings with 300 rows\n")
        assert "disk is full" in done.stderr
        assert "used for new rows" in done.stderr
        store = open_store(db)
        assert [each.spec.id for each in store.recordings(RecordingFilter()).items] == [kept.id]
        store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without recordings."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    return migrate(request.getfixturevalue("postgres").new_database())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--older-than", "1", "--status", "complete"), "status: 'complete' is not allowed"),
        (("--older-than", "1", "--family", "a b"), "family: 'a b' is not allowed"),
        (("--older-than", "inf"), "--older-than"),
        (("--older-than", "nan"), "--older-than"),
        (("--older-than", "1e18"), "--older-than"),
    ],
    ids=str,
)
def test_a_prune_that_could_delete_nothing_is_refused(tmp_path: Path, options, says: str):
    """A wrong status would otherwise keep a database growing, without a word."""
    db = f"sqlite:///{tmp_path}/registry.db"
    open_store(db).close()
    done = CliRunner().invoke(app, ["db", "prune", "--db", db, *options])
    assert done.exit_code == 2 and says in done.output, done.output


def test_many_recordings_are_pruned_in_few_transactions(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
):
    """Families, tokens and long recordings mixed; what is new, or of another status, stays."""
    monkeypatch.setattr(prune, "RECORDINGS_AT_ONCE", 4)
    monkeypatch.setattr(prune, "ROWS_AT_ONCE", 12)
    store = open_store(empty_url)
    names = [family(), family()]
    for at in range(24):
        each = spec(names[at % 2], seed=at, tags={"at": str(at)})
        store.start(each, created_by=f"token {at % 3}")
        store.append_many([batch(each.id, *rows(*range(1, 2 + at % 5)))])
        store.finish(each.id, 0, Ending(status="failed" if at % 4 else "completed"))
    after = now() + timedelta(days=1)
    failed = RecordingFilter(family=names[1], status="failed")
    wanted = list(store.all_recordings(failed))
    expected = (len(wanted), sum(each.rows for each in wanted))
    everything = list(store.all_recordings(RecordingFilter()))
    long_ago = now() - timedelta(days=1)
    assert prune.prune(store.engine, RecordingFilter(), long_ago) == (0, 0)
    assert prune.prune(store.engine, failed, after, dry_run=True) == expected
    assert list(store.all_recordings(RecordingFilter())) == everything
    assert prune.prune(store.engine, failed, after) == expected
    gone = {each.spec.id for each in wanted}
    left = [each for each in everything if each.spec.id not in gone]
    assert list(store.all_recordings(RecordingFilter())) == left
    for each in left:
        assert len(store.trajectory(each.spec.id)) == each.rows
    # Two at once, of the same families and tokens, beside recordings that start and end.
    with ThreadPoolExecutor(2) as threads:
        prunes = [
            threads.submit(prune.prune, store.engine, RecordingFilter(family=name), after)
            for name in names * 2
        ]
        fresh = [spec(names[at % 2], seed=100 + at) for at in range(12)]
        for at, each in enumerate(fresh):
            store.start(each, created_by=f"token {at % 3}")
            with suppress(NotFound):  # pruned already
                store.finish(each.id, 0, Ending(status="failed"))
    deleted = sum(each.result()[0] for each in prunes)
    deleted += prune.prune(store.engine, RecordingFilter(), after)[0]
    assert deleted == len(left) + len(fresh)
    with transaction(store.engine) as connection:
        for table in (attempts, measurements, recording_tags):
            count = sa.select(sa.func.count()).select_from(table)
            assert connection.execute(count).scalar_one() == 0
    store.close()


def test_a_postgresql_registry_is_dumped_and_restored(postgres: PostgresCluster):
    url = migrate(postgres.new_database())
    store = open_store(url)
    sent = spec(family(), tags={"a": "1"})
    store.start(sent)
    store.append_many([batch(sent.id, *rows(1, 2))])
    dump = subprocess.run([postgres_tool("pg_dump"), url], check=True, capture_output=True).stdout
    restored_url = postgres.new_database()
    load = [
        postgres_tool("psql"),
        "--quiet",
        "--set",
        "ON_ERROR_STOP=1",
        "--single-transaction",
        restored_url,
    ]
    subprocess.run(load, input=dump, check=True, capture_output=True)
    restored = open_store(restored_url)
    assert restored.recording(sent.id).spec == store.recording(sent.id).spec
    assert restored.trajectory(sent.id) == store.trajectory(sent.id)
    assert restored.start(
        spec(sent.family)
    ).created  # the restored database goes on counting keys where the old one was
    store.close()
    restored.close()


def test_a_file_on_a_network_file_system_is_refused(tmp_path: Path):
    mounts = tmp_path / "mounts"
    home = tmp_path / "shared disk"
    home.mkdir()
    written = str(home).replace(" ", "\\040")
    mounts.write_text(f"/dev/root / ext4 rw 0 0\nserver:/export {written} nfs4 rw,vers=4.2 0 0\n")
    refuse_network_file_system(tmp_path / "registry.db", mounts)
    with pytest.raises(
        Refused,
        match=r"it lies on a network file system \(nfs4 at .*shared disk\), .* PostgreSQL",
    ):
        refuse_network_file_system(home / "registry.db", mounts)
    mounts.write_text(f"/dev/root / ext4 rw 0 0\nme@host: {written} fuse.sshfs rw 0 0\n")
    with pytest.raises(Refused, match=r"fuse\.sshfs"):
        refuse_network_file_system(home / "registry.db", mounts)
    refuse_network_file_system(home / "registry.db", tmp_path / "no list of mounts")
    open_engine(parse_url(f"sqlite:///{tmp_path}/registry.db")).dispose()


def test_a_recording_with_its_end_survives_the_wire():
    sent = spec(family())
    message = recording_messages.spec_to_proto(sent)
    assert recording_messages.recording_from_proto(pb.Recording(spec=message)).final_step is None
    assert (
        recording_messages.recording_from_proto(pb.Recording(spec=message, final_step=0)).final_step
        == 0
    )
