"""Families carried from one registry to another as files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flerm_client.cli import main
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Ending
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.sql.store import open_store
from tests.conftest import StartRegistry
from tests.server.samples import batch, row, rows, spec

FAMILY = "team/resmlp"


def flerm(*arguments: str, registry: str, token: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flerm_client.cli", *arguments, "--registry", registry]
    environment = os.environ | ({"FLERM_TOKEN": token} if token else {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_family_arrives_as_it_was(start_registry: StartRegistry, tmp_path: Path):
    old = start_registry(db=f"sqlite:///{tmp_path}/old.db")
    there = open_store(old.db)
    there.register_family(FAMILY, description="small ones", blocks=("layers.*",))
    ended, running, empty = (
        spec(FAMILY, tags={"a": "b"}, config={"width": 32}),
        spec(FAMILY, lr=3e-3),
        spec(FAMILY, lr=9e-3),
    )
    for each in (ended, running, empty):
        there.start(each)
    vectors = {"multipliers": np.array([1, np.nan, 2], np.float32)}
    further = [
        row(1, loss=0.5, learning_rate=1e-3, tokens=10),
        row(2, scalars={"sharpness": 3.5}),
        row(3, vectors=vectors),
    ]
    there.append_many([batch(ended.id, *further), batch(running.id, *rows(*range(1, 1201))[:1000])])
    there.append_many([batch(running.id, *rows(*range(1001, 1201)))])
    there.finish(ended.id, 0, Ending(final_loss=0.25, final_step=4, tokens=40))

    folder = tmp_path / "moved"
    done = flerm("export", FAMILY, str(folder), registry=old.address)
    assert (done.returncode, done.stdout) == (0, f"{folder}: 3 recordings with 1203 rows\n"), (
        done.stderr
    )
    table = pq.read_table(folder / "recordings" / f"{ended.id}.parquet")
    assert table.column_names == [
        "step",
        "loss",
        "learning_rate",
        "tokens",
        "fslr",
        "scalar:sharpness",
        "vector:multipliers",
    ]
    assert json.loads((folder / "recordings" / f"{ended.id}.json").read_text())["spec"]["tags"] == {
        "a": "b"
    }

    new = start_registry(db=f"sqlite:///{tmp_path}/new.db")
    here = open_store(new.db)
    token = SqlTokenStore(here.engine).create("mover", "write", "team")[1].text
    for _ in range(2):  # the second time changes nothing
        done = flerm("import", str(folder), registry=new.address, token=token)
        assert (done.returncode, done.stdout) == (0, f"{FAMILY}: 3 recordings with 1203 rows\n"), (
            done.stderr
        )
    assert (here.family(FAMILY).description, here.family(FAMILY).blocks) == (
        "small ones",
        ("layers.*",),
    )
    listed = [
        [each.spec.id for each in store.recordings(RecordingFilter()).items]
        for store in (there, here)
    ]
    assert listed[0] == listed[1] == [empty.id, running.id, ended.id]
    for each in (ended, running, empty):
        assert here.recording(each.id).spec == there.recording(each.id).spec
        assert here.trajectory(each.id) == there.trajectory(each.id)
        auxiliary = [
            [rows.auxiliary for rows in store.read(store.select(each.id))]
            for store in (there, here)
        ]
        assert auxiliary[0] == auxiliary[1]
    found = here.recording(ended.id)
    assert (found.status, found.final_loss, found.final_step, found.tokens) == (
        "completed",
        0.25,
        4,
        40,
    )
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


def test_a_folder_that_is_a_registry_is_synced_instead(tmp_path, capsys):
    assert main(["import", str(tmp_path), "--registry", f"file://{tmp_path}"]) == 2
    assert "`flerm sync` carries its recordings to a server" in capsys.readouterr().err
