"""Families carried from one registry to another as files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import json_format

from flerm_client.cli import main
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Ending, RecordingSpec
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.interface import Store
from flerm_server.store.sql.store import open_store
from tests.conftest import StartRegistry
from tests.server.samples import batch, row, rows, spec

FAMILY = "team/resmlp"


def flerm(*arguments: str, registry: str, token: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flerm_client.cli", *arguments, "--registry", registry]
    environment = os.environ | ({"FLERM_TOKEN": token} if token else {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


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


def test_a_family_arrives_as_it_was(start_registry: StartRegistry, tmp_path: Path):
    old = start_registry(db=f"sqlite:///{tmp_path}/old.db")
    there = open_store(old.db)
    specs = ended, running, _ = fill(there)

    folder = tmp_path / "moved"
    done = flerm("export", FAMILY, str(folder), registry=old.address)
    assert (done.returncode, done.stdout) == (0, f"{folder}: 3 recordings with 1203 rows\n"), (
        done.stderr
    )
    table = pq.read_table(folder / "recordings" / f"{ended.id}.parquet")
    columns = ["step", "loss", "learning_rate", "tokens", "fslr"]
    assert table.column_names == [*columns, "scalar:sharpness", "vector:multipliers"]
    written = json.loads((folder / "recordings" / f"{ended.id}.json").read_text())
    assert written["spec"]["tags"] == {"a": "b"}

    new = start_registry(db=f"sqlite:///{tmp_path}/new.db")
    here = open_store(new.db)
    token = SqlTokenStore(here.engine).create("mover", "write", "team")[1].text
    for _ in range(2):  # the second time changes nothing
        done = flerm("import", str(folder), registry=new.address, token=token)
        assert (done.returncode, done.stdout) == (0, f"{FAMILY}: 3 recordings with 1203 rows\n"), (
            done.stderr
        )
    family = here.family(FAMILY)
    assert (family.description, family.blocks) == ("small ones", ("layers.*",))
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
    assert found == {"home", "a", "a/out", "a/out/recordings"}


def archive(folder: Path, *ids: str) -> Path:
    """A folder that says that it holds the family f."""
    (folder / "recordings").mkdir(parents=True)
    (folder / "family.json").write_text(json.dumps({"name": "f", "order": ids}))
    return folder


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "recordings", 7, None])
def test_an_archive_names_no_file_outside(registry, tmp_path, capsys, name):
    folder = archive(tmp_path / "f", name)
    assert main(["import", str(folder), "--registry", registry.address]) == 2
    assert "order:" in capsys.readouterr().err


@pytest.mark.parametrize("linked", ["{id}.json", "{id}.parquet", "../family.json", "../recordings"])
def test_an_archive_has_no_links(registry, tmp_path, capsys, linked):
    sent = spec(FAMILY)
    folder = archive(tmp_path / "f", sent.id)
    (folder / "recordings" / f"{sent.id}.json").write_text("{}")
    path = folder / "recordings" / linked.format(id=sent.id)
    path = folder / path.name if linked.startswith("..") else path
    if path.exists():
        path.rename(tmp_path / "outside")
    else:
        (tmp_path / "outside").touch()
    path.symlink_to(tmp_path / "outside")
    assert main(["import", str(folder), "--registry", registry.address]) == 2
    assert "is a link or no plain file" in capsys.readouterr().err


DEEP = "[" * 100_000


@pytest.mark.parametrize("content", ["[]", "7", DEEP, '{"order": 7}', '{"order": []}x', "\udcff"])
def test_a_family_file_that_holds_something_else_is_said(registry, tmp_path, capsys, content):
    (tmp_path / "family.json").write_bytes(content.encode(errors="surrogateescape"))
    assert main(["import", str(tmp_path), "--registry", registry.address]) == 2
    assert "does not hold an exported family" in capsys.readouterr().err


def columns(**changed: pa.Array | None) -> pa.Table:
    """The rows of a recording with three tensors, with other columns in place of some."""
    right = {
        "step": pa.array([1, 2]),
        "loss": pa.array([0.5, 0.5]),
        "learning_rate": pa.array([1.0, 1.0]),
        "tokens": pa.array([10, 20]),
        "fslr": pa.FixedSizeListArray.from_arrays(pa.array([1.0] * 6, pa.float32()), 3),
    }
    return pa.table({name: each for name, each in (right | changed).items() if each is not None})


HOSTILE_ROWS = {
    "no column": columns(fslr=None),
    "texts": columns(step=pa.array(["1", "2"])),
    "nulls": columns(step=pa.array([1, None])),
    "lists of another width": columns(fslr=pa.array([[1.0], [2.0]])),
    "numbers in place of lists": columns(fslr=pa.array([1.0, 2.0])),
    "a step beyond all": columns(step=pa.array([1, 2**64 - 1], pa.uint64())),
    "a scalar that is a text": columns(**{"scalar:x": pa.array(["a", "b"])}),
    "one column": pa.table({"x": [1]}),
}


@pytest.mark.parametrize("name", [*HOSTILE_ROWS, "deep", "another's", "sparse"])
def test_a_recording_that_holds_something_else_is_said(registry, tmp_path, capsys, name):
    sent = spec("f")
    message = pb.Recording(spec=recording_messages.spec_to_proto(sent), parameter_count=3)
    if name == "another's":
        message.spec.id = spec("f").id
    folder = archive(tmp_path / "f", sent.id) / "recordings"
    text = DEEP if name == "deep" else json_format.MessageToJson(message)
    with (folder / f"{sent.id}.json").open("w") as file:
        file.write(text)
        file.truncate(1 << 40 if name == "sparse" else None)
    pq.write_table(HOSTILE_ROWS.get(name, columns()), folder / f"{sent.id}.parquet")
    assert main(["import", str(folder.parent), "--registry", registry.address]) == 2
    error = capsys.readouterr().err
    assert "folder: " in error and sent.id in error and "Traceback" not in error


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
    assert len(made) == 9
    for each in made:
        assert each.stat().st_mode & 0o777 == (0o700 if each.is_dir() else 0o600), each


def test_a_folder_that_is_a_registry_is_synced_instead(tmp_path, capsys):
    assert main(["import", str(tmp_path), "--registry", f"file://{tmp_path}"]) == 2
    assert "`flerm sync` carries its recordings to a server" in capsys.readouterr().err
