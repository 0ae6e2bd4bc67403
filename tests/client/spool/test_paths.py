"""The spool folder: where it is, its files and its quarantine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from spooled import spec_of, write_run

from flerm_client.spool import SpoolWriter, default_folder
from flerm_client.spool.paths import (
    own_folder,
    quarantine,
    quarantined,
    remove,
    sidecar,
    spool_files,
)
from flerm_client.upload.progress import DeliveryProgress
from flerm_client.upload.reporter import SpoolReporter, check_reporting
from flerm_core.errors import InvalidInput
from flerm_core.records.recording import Attempt


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FLERM_SPOOL", str(tmp_path / "a"))
    assert default_folder() == tmp_path / "a"
    monkeypatch.delenv("FLERM_SPOOL")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_folder() == tmp_path / "state" / "flerm" / "spool"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".local" / "state" / "flerm" / "spool"


def test_without_a_home_folder_one_sentence_says_what_to_set(monkeypatch):
    for name in ("FLERM_SPOOL", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("flerm_client.spool.paths.Path.home", no_home)
    with pytest.raises(InvalidInput, match="no home folder: set FLERM_SPOOL"):
        default_folder()


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=["umask 000", "umask 022", "umask 077"])
def umask(request):
    """The umask, which is a shell's, and says nothing about what may be read."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The mode of each file and folder below `folder`."""
    return {
        str(each.relative_to(folder)): f"{each.stat().st_mode & 0o777:04o}"
        for each in folder.rglob("*")
    }


def test_nobody_else_reads_what_is_in_a_spool(tmp_path, umask):
    spool = tmp_path / "state" / "spool"
    write_run(own_folder(spool), spec_of("mlp"), [1], registry="grpc://127.0.0.1:1")
    DeliveryProgress().write(spool_files(spool)[0])
    quarantine(spool_files(spool)[0], "step 1: refused")
    reporter = SpoolReporter.open("grpc://127.0.0.1:1", spec_of("mlp"), Attempt(), spool=spool)
    reporter.close()
    found = modes(tmp_path)
    folders = {name for name in found if (tmp_path / name).is_dir()}
    assert {name: mode for name, mode in found.items() if name in folders} == dict.fromkeys(
        ("state", "state/spool", "state/spool/quarantine"), "0700"
    )
    assert {mode for name, mode in found.items() if name not in folders} == {"0600"}
    assert {Path(name).suffix for name in set(found) - folders} >= {".spool", ".log", ".why"}


def test_a_folder_of_others_is_refused_before_the_first_step(tmp_path):
    for mode in (0o720, 0o702, 0o777):
        tmp_path.chmod(mode)
        for begin in (
            lambda: own_folder(tmp_path),
            lambda: check_reporting("grpc://127.0.0.1:1", spec_of("mlp"), tmp_path),
            lambda: SpoolReporter.open(
                "grpc://127.0.0.1:1", spec_of("mlp"), Attempt(), spool=tmp_path
            ),
        ):
            with pytest.raises(
                InvalidInput, match=rf"mode {mode:04o}\), who could change what is sent: chmod go-w"
            ):
                begin()
    for mode in (0o700, 0o755, 0o1777):  # the last one is a tmpfs's
        tmp_path.chmod(mode)
        assert own_folder(tmp_path) == tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_or_a_link_of_another_user_is_refused(tmp_path):
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.mkdir(mode=0o700)
    link.symlink_to(mine)
    assert own_folder(link) == link
    os.lchown(link, 65534, 65534)
    with pytest.raises(InvalidInput, match="belongs to another user"):
        own_folder(link)
    os.chown(mine, 65534, 65534)
    with pytest.raises(InvalidInput, match="belongs to another user"):
        own_folder(mine)


def test_a_folder_that_is_a_registry_may_be_shared(tmp_path):
    tmp_path.chmod(0o770)
    check_reporting(tmp_path.as_uri(), spec_of("mlp"))
    SpoolReporter.open(tmp_path.as_uri(), spec_of("mlp"), Attempt()).close()
    assert len(spool_files(tmp_path)) == 1


@pytest.mark.skipif(os.access("/proc/sys", os.W_OK), reason="a folder that takes no file is needed")
def test_a_folder_that_takes_no_file_is_refused_with_what_helps():
    with pytest.raises(InvalidInput, match=r"/proc/sys cannot be written: set FLERM_SPOOL"):
        check_reporting("grpc://127.0.0.1:1", spec_of("mlp"), "/proc/sys")
    with pytest.raises(InvalidInput, match=r"/proc/sys cannot be written: name another folder as"):
        check_reporting("file:///proc/sys", spec_of("mlp"))


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "", ".", "con"])
def test_no_id_chooses_a_path(tmp_path, name):
    for spec, attempt in ((spec_of("mlp", id=name), Attempt()), (spec_of("mlp"), Attempt(id=name))):
        with pytest.raises(InvalidInput, match=r"_id: .* must be a UUID"):
            SpoolWriter(tmp_path / "spool").start(spec, attempt)
    assert list(tmp_path.iterdir()) == []


def test_a_link_beside_a_spool_file_leads_nowhere(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    spool, spec, attempt = tmp_path / "spool", spec_of("mlp"), Attempt()
    own_folder(spool / "quarantine")
    stem = f"{spec.id}.{attempt.id}"
    for planted in (f"{stem}.log", f"{stem}.progress", f"quarantine/{stem}.why"):
        (spool / planted).symlink_to(victim)
    reporter = SpoolReporter.open("grpc://127.0.0.1:1", spec, attempt, spool=spool)
    reporter.close()
    DeliveryProgress(acknowledged=1).write(reporter.path)
    moved = quarantine(reporter.path, "refused")
    assert list(quarantined(spool)) == [(moved, "no reason was written")]
    assert victim.read_text() == "precious\n"


def test_a_refused_file_is_kept_with_the_reason(tmp_path):
    path = write_run(tmp_path, spec_of("mlp"), [1])
    sidecar(path, ".progress").write_text("{}")
    target = quarantine(path, "step 1: refused")
    assert list(quarantined(tmp_path)) == [(target, "step 1: refused")]
    assert spool_files(tmp_path) == [] and not sidecar(path, ".progress").exists()
    assert quarantine(path, "again") == target  # another sender was faster


def test_a_delivered_file_is_removed_with_what_stands_beside_it(tmp_path):
    path = write_run(tmp_path, spec_of("mlp"), [1])
    for suffix in (".log", ".progress"):
        sidecar(path, suffix).touch()
    for _ in range(2):
        remove(path)
    assert list(tmp_path.iterdir()) == []
