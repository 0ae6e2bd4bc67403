"""Families carried from one registry to another as files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.dataset import dataset

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_client.registry import archive_files, family_archive
from flerm_client.registry.address import address_of
from flerm_client.registry.archive_files import new_part
from flerm_client.registry.connection import Connection
from flerm_core.errors import InvalidInput, Unreachable
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Ending, RecordingSpec
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.interface import Store
from flerm_server.store.sql.store import open_store
from tests.conftest import StartRegistry
from tests.server.samples import PARAMETERS, batch, family, row, rows, spec

FAMILY = "team/resmlp"


def fill(store: Store) -> tuple[RecordingSpec, RecordingSpec, RecordingSpec]:
    """A recording that ended, one that runs, and one without rows, of one family."""
    store.register_family(FAMILY, description="small ones", blocks=("layers.*",))
    ended, running, empty = (
        spec(FAMILY, tags={"a": "b"}, config={"width": 32}),
        spec(FAMILY, lr=3e-3),
        spec(FAMILY, lr=9e-3),
    )
    for each in (ended, running, empty):
        store.start(each)
    vectors = {"multipliers": np.array([1, np.nan, 2], np.float32)}
    further = [
        row(1, loss=0.5, learning_rate=1e-3, tokens=10),
        row(2, scalars={"sharpness": 3.5}),
        row(3, vectors=vectors),
    ]
    store.append_many([batch(ended.id, *further), batch(running.id, *rows(*range(1, 1201))[:1000])])
    store.append_many([batch(running.id, *rows(*range(1001, 1201)))])
    store.finish(ended.id, 0, Ending(final_loss=0.25, final_step=4, tokens=40))
    return ended, running, empty


def assert_same_recordings(there: Store, here: Store, specs: Sequence[RecordingSpec]) -> None:
    """Both stores hold these recordings alone, the last first, and of each the same rows."""
    for store in (there, here):
        listed = [each.spec.id for each in store.recordings(RecordingFilter()).items]
        assert listed == [each.id for each in reversed(specs)]
    for each in specs:
        assert here.recording(each.id).spec == there.recording(each.id).spec
        assert here.recording(each.id).created_at == there.recording(each.id).created_at
        assert here.trajectory(each.id) == there.trajectory(each.id)
        auxiliary = [
            [rows.auxiliary for rows in store.read(store.select(each.id))]
            for store in (there, here)
        ]
        assert auxiliary[0] == auxiliary[1]


def test_a_family_arrives_as_it_was(
    start_registry: StartRegistry, tmp_path: Path, capsys, monkeypatch
):
    old = start_registry(db=f"sqlite:///{tmp_path}/old.db")
    there = open_store(old.db)
    specs = ended, running, _ = fill(there)

    folder = tmp_path / "moved"
    assert main(["export", FAMILY, str(folder), "--registry", old.address]) == 0
    assert capsys.readouterr() == (f"{folder}: 3 recordings with 1203 rows\n", "")
    made = {str(each.relative_to(folder)) for each in folder.rglob("*.*")}
    assert made == {"family.json", "recordings/00001.parquet", "rows/00001.parquet"}

    new = start_registry(db=f"sqlite:///{tmp_path}/new.db")
    here = open_store(new.db)
    token = SqlTokenStore(here.engine).create("mover", "write", "team")[1].text
    monkeypatch.setenv("FLERM_TOKEN", token)
    for _ in range(2):  # the second time changes nothing
        assert main(["import", str(folder), "--registry", new.address]) == 0
        assert capsys.readouterr() == (f"{FAMILY}: 3 recordings with 1203 rows\n", "")
    described = here.family(FAMILY)
    assert (described.description, described.blocks) == ("small ones", ("layers.*",))
    assert_same_recordings(there, here, specs)
    found = here.recording(ended.id)
    assert found.finished_at == there.recording(ended.id).finished_at
    assert (found.status, found.final_loss) == ("completed", 0.25)
    assert (found.final_step, found.tokens) == (4, 40)
    assert here.recording(running.id).status == "interrupted"  # nobody here writes it
    assert found.created_by.startswith("mover (")
    there.close()
    here.close()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("export", "none/such", "{tmp}/new"), 3, "family 'none/such' is not in"),
        (("export", FAMILY, "{tmp}"), 2, "is there and not empty; a new folder is allowed"),
        (("import", "{tmp}/nothing"), 2, "does not hold an exported family"),
    ],
)
def test_what_cannot_be_moved_is_said(
    registry, tmp_path, capsys, monkeypatch, arguments, code, sentence
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLERM_REGISTRY", registry.address)
    assert main([each.format(tmp=tmp_path) for each in arguments]) == code
    assert sentence in capsys.readouterr().err


class Liar(rpc.RegistryServicer):
    """A registry whose recording has an id that is a path."""

    def __init__(self, name: str) -> None:
        self.recording = pb.Recording(spec=pb.RecordingSpec(id=name, family="f"))

    def ListFamilies(self, *_: object) -> pb.ListFamiliesResponse:
        return pb.ListFamiliesResponse(families=[pb.Family(name="f")])

    def ListRecordings(self, *_: object) -> pb.ListRecordingsResponse:
        return pb.ListRecordingsResponse(recordings=[self.recording])

    def GetRecording(self, *_: object) -> pb.Recording:
        return self.recording

    def GetTrajectory(self, *_: object) -> Iterator[pb.TrajectoryChunk]:
        yield pb.TrajectoryChunk(header=pb.TrajectoryHeader())


@pytest.mark.parametrize("name", ["../../home/settings", "/tmp/settings", "..", "COM1", ""])
def test_a_registry_chooses_no_path(tmp_path, capsys, name):
    (tmp_path / "home").mkdir()
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_RegistryServicer_to_server(Liar(name), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    arguments = [
        "export",
        "f",
        str(tmp_path / "a" / "out"),
        "--registry",
        f"grpc://127.0.0.1:{port}",
    ]
    assert main(arguments) == 2
    assert "recording_id:" in capsys.readouterr().err
    server.stop(None)
    found = {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")}
    assert found == {"home"}


def archive(folder: Path, *parts: object) -> Path:
    """A folder that says that it holds the family f in these parts."""
    for kind in ("recordings", "rows"):
        (folder / kind).mkdir(parents=True)
    (folder / "family.json").write_text(json.dumps({"name": "f", "parts": parts}))
    return folder


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "recordings", 7, None])
def test_an_archive_names_no_file_outside(registry, tmp_path, capsys, name):
    folder = archive(tmp_path / "f", name)
    assert main(["import", str(folder), "--registry", registry.address]) == 2
    assert "only numbers are allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "linked", ["recordings/1.parquet", "rows/1.parquet", "family.json", "recordings", "rows"]
)
def test_an_archive_has_no_links(registry, tmp_path, capsys, linked):
    folder = archive(tmp_path / "f", "1")
    write_part(folder, pb.Recording(spec=recording_messages.spec_to_proto(spec("f"))))
    (folder / linked).rename(tmp_path / "outside")
    (folder / linked).symlink_to(tmp_path / "outside")
    assert main(["import", str(folder), "--registry", registry.address]) == 2
    assert "is a link or no plain file" in capsys.readouterr().err


DEEP = "[" * 100_000


@pytest.mark.parametrize("content", ["[]", "7", DEEP, '{"parts": 7}', '{"parts": []}x', "\udcff"])
def test_a_family_file_that_holds_something_else_is_said(registry, tmp_path, capsys, content):
    (tmp_path / "family.json").write_bytes(content.encode(errors="surrogateescape"))
    assert main(["import", str(tmp_path), "--registry", registry.address]) == 2
    assert "does not hold an exported family" in capsys.readouterr().err


def write_part(folder: Path, message: pb.Recording, rows: pa.Table | None = None) -> None:
    """The part 1 of an archive, with one recording."""
    with new_part(folder, "1") as part:
        part.add(message, [])
    if rows is not None:
        pq.write_table(rows, folder / "rows" / "1.parquet")


def two_rows(of: str, **changed: pa.Array | None) -> pa.Table:
    """The rows of a recording with three tensors, with other columns in place of some."""
    chunk = pb.TrajectoryRows(
        steps=[1, 2],
        values=np.ones(6, np.float32).tobytes(),
        losses=[0.5] * 2,
        learning_rates=[1.0] * 2,
        tokens=[10, 20],
    )
    sent = spec("f", id=of)
    message = pb.Recording(spec=recording_messages.spec_to_proto(sent))
    with TemporaryDirectory() as name:
        folder = archive(Path(name) / "f")
        with new_part(folder, "1") as part:
            part.add(message, [chunk])
        table = pq.read_table(folder / "rows" / "1.parquet")
    right = {each: table[each] for each in table.column_names} | changed
    return pa.table({name: each for name, each in right.items() if each is not None})


HOSTILE_ROWS = {
    "no column": {"fslr": None},
    "texts": {"step": pa.array(["1", "2"])},
    "nulls": {"step": pa.array([1, None])},
    "lists of another width": {"fslr": pa.array([[1.0], [2.0]], pa.list_(pa.float32()))},
    "numbers in place of lists": {"fslr": pa.array([1.0, 2.0])},
    "a step beyond all": {"step": pa.array([1, 2**64 - 1], pa.uint64())},
    "scalars that are texts": {"scalars": pa.array(["a", "b"])},
    "another's row": {"recording": pa.array([spec("f").id] * 2)},
    "a row too few": {"step": pa.array([1, 2])},
}


@pytest.mark.parametrize("name", [*HOSTILE_ROWS, "deep", "no id", "sparse"])
def test_a_recording_that_holds_something_else_is_said(registry, tmp_path, capsys, name):
    sent = spec("f")
    count = 3 if name == "a row too few" else 2
    message = pb.Recording(
        spec=recording_messages.spec_to_proto(sent), parameter_count=3, rows=count
    )
    if name == "no id":
        message.spec.id = "../outside"
    folder = archive(tmp_path / "f", "1")
    write_part(folder, message, two_rows(sent.id, **HOSTILE_ROWS.get(name, {})))
    path = folder / "recordings" / "1.parquet"
    if name == "deep":
        table = pq.read_table(path)
        at = table.column_names.index("message")
        pq.write_table(table.set_column(at, "message", pa.array([DEEP])), path)
    if name == "sparse":
        os.truncate(path, 1 << 40)
    assert main(["import", str(folder), "--registry", registry.address]) == 2
    error = capsys.readouterr().err
    by_the_registry = {"no id": "recording_id: '../outside'", "lists of another width": "at step 1"}
    assert by_the_registry.get(name, "folder: ") in error and "Traceback" not in error
    assert registry_is_empty(registry)


def registry_is_empty(registry) -> bool:
    """Whether no recording of the family f was stored."""
    with RegistryClient(registry.address) as client:
        return not list(client.recordings("f"))


def test_an_export_that_was_interrupted_goes_on(registry, tmp_path, monkeypatch):
    """What has not changed since is not fetched again; what has is, and nothing is there twice."""
    monkeypatch.setattr(archive_files, "PART_RECORDINGS", 2)
    name = family()
    specs = [spec(name, seed=seed) for seed in range(6)]
    there = open_store(registry.db)
    for each in specs:
        there.start(each)
        there.append_many([batch(each.id, *rows(1, 2))])
        there.finish(each.id, 0, Ending())
    folder = tmp_path / "out"
    connection = Cut(address_of(registry.address), lambda: "", 4)
    with pytest.raises(Unreachable):
        family_archive.export_family(connection, name, folder)
    assert len(list(folder.glob("rows/*.parquet"))) == 2  # the part that was begun is not there
    (folder / "rows" / "00003.parquet").write_text("the rest of a part")
    (folder / "rows" / ".00003.parquet.1.partial").touch()
    (folder / ".family.json.1.partial").touch()
    there.tag(specs[0].id, {"changed": "since"})
    other = there.register_family(family()).name
    with pytest.raises(InvalidInput, match="has a part of the family"):
        family_archive.export_family(connection, other, folder)

    connection.left = 100
    (folder / ".family.json.2.partial").touch()
    done: list[tuple[int, int]] = []
    found = family_archive.export_family(connection, name, folder, lambda *each: done.append(each))
    assert found == (6, 12)
    assert done == [(3, 6), (4, 6), (5, 6), (6, 6)]  # the first part's two, and the last two
    assert connection.left == 96
    assert sorted(each.name for each in folder.iterdir()) == ["family.json", "recordings", "rows"]
    table = dataset(folder / "rows").to_table()
    held = sorted((each.id, step) for each in specs for step in (1, 2))
    assert sorted((each["recording"], each["step"]) for each in table.to_pylist()) == held
    with pytest.raises(InvalidInput, match="is there and not empty"):
        family_archive.export_family(connection, name, folder)

    there.delete(specs[3].id)
    assert family_archive.import_family(connection, folder) == (name, 6, 12)
    assert there.recording(specs[3].id).rows == 2
    assert there.recording(specs[0].id).spec.tags == {"changed": "since"}
    connection.close()
    there.close()


class Cut(Connection):
    """A connection that breaks after `left` trajectories."""

    def __init__(self, address, token, left: int) -> None:
        super().__init__(address, token)
        self.left = left

    def trajectory(self, request):
        if not self.left:
            raise Unreachable("the cable was cut")
        self.left -= 1
        return super().trajectory(request)


def test_an_archive_is_a_data_set(registry, tmp_path):
    """One table of all rows, beside one of all recordings, by the tools that read Parquet."""
    name = family()
    there = open_store(registry.db)
    sent = spec(name, seed=7), spec(name, lr=3e-3, role="scaled", variant="matched")
    vectors = {"multiplier": np.array([1, np.nan, 2], np.float32)}
    for each in sent:
        there.start(each)
    there.append_many([
        batch(sent[0].id, row(1, loss=0.5, tokens=2**53 - 1), row(2, scalars={"sharpness": 3.5})),
        batch(sent[1].id, row(1, 1, 2, 3, vectors=vectors)),
    ])  # fmt: skip
    there.finish(sent[0].id, 0, Ending(final_loss=0.25))
    there.close()
    with closing(Connection(address_of(registry.address), lambda: "")) as connection:
        family_archive.export_family(connection, name, tmp_path / "out")
    by_id = [each.id for each in sent]
    found = dataset(tmp_path / "out" / "rows").to_table().to_pylist()
    found.sort(key=lambda each: (by_id.index(each["recording"]), each["step"]))
    for each in found:
        each["fslr"] = [None if value != value else value for value in each["fslr"]]
    shared = {"recording": by_id[0], "lr": 1e-3, "seed": 7, "role": "base", "variant": "plain",
              "learning_rate": None, "vectors": []}  # fmt: skip
    assert found[:2] == [
        shared | {"step": 1, "loss": 0.5, "tokens": 2**53 - 1, "fslr": [1, 0.5, None],
                  "scalars": []},
        shared | {"step": 2, "loss": None, "tokens": None, "fslr": [2, 1, None],
                  "scalars": [("sharpness", 3.5)]},
    ]  # fmt: skip
    assert (found[2]["role"], found[2]["variant"], found[2]["fslr"]) == (
        "scaled",
        "matched",
        [1, 2, 3],
    )
    ((key, vector),) = found[2]["vectors"]
    assert key == "multiplier" and vector[::2] == [1, 2] and vector[1] != vector[1]
    listed = dataset(tmp_path / "out" / "recordings").to_table()
    losses = {each["recording"]: each["final_loss"] for each in listed.to_pylist()}
    assert losses == {by_id[0]: 0.25, by_id[1]: None}
    assert listed["names"].to_pylist() == [list(PARAMETERS.names)] * 2


def test_exports_are_for_their_owner(start_registry: StartRegistry, tmp_path, capsys):
    running = start_registry()
    there = open_store(running.db)
    sent = spec(FAMILY)
    there.start(sent)
    there.append_many([batch(sent.id, *rows(1, 2))])
    there.close()
    before = os.umask(0)
    try:
        for file in ("a.npz", "a.csv", "a.json"):
            asked = ["export", sent.id, str(tmp_path / file), "--registry", running.address]
            assert main(asked) == 0
        asked = ["export", FAMILY, str(tmp_path / "out" / "family"), "--registry", running.address]
        assert main(asked) == 0
    finally:
        os.umask(before)
    made = [*tmp_path.glob("a.*"), tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(made) == 10
    for each in made:
        assert each.stat().st_mode & 0o777 == (0o700 if each.is_dir() else 0o600), each


def test_a_folder_that_is_a_registry_is_synced_instead(tmp_path, capsys):
    assert main(["import", str(tmp_path), "--registry", f"file://{tmp_path}"]) == 2
    assert "`flerm sync` carries its recordings to a server" in capsys.readouterr().err
