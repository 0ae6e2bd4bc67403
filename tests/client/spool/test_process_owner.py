"""The owner of a spool file: whether the process that writes it still runs."""

from __future__ import annotations

import subprocess
import sys

from spooled import child_environment

from flerm_client.spool import read
from flerm_client.spool.process_owner import ProcessOwner


def test_an_owner_runs_until_its_process_has_ended(tmp_path):
    code = (
        "import sys; from pathlib import Path; from spooled import *; "
        "w = SpoolWriter(Path(sys.argv[1])); w.start(spec_of('mlp'), Attempt()); "
        "w.append(row_of(1)); print('up', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
    )
    assert child.stdout.readline() == b"up\n"
    (path,) = tmp_path.glob("*.spool")
    assert read(path).status == "running"
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert read(path).status == "interrupted"
    assert [row.step for row in read(path).rows] == [1]


def test_a_process_of_another_machine_counts_as_running():
    owner = ProcessOwner("another-host", "boot", 1, "5")
    assert (owner.on_this_machine, owner.alive) == (False, True)
