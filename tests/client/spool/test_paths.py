"""The spool folder: where it is, its files and its quarantine."""

from __future__ import annotations

from pathlib import Path

import pytest
from spooled import spec_of, write_run

from flerm_client.spool import default_folder
from flerm_client.spool.paths import quarantine, quarantined, remove, sidecar, spool_files
from flerm_core.errors import InvalidInput


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
