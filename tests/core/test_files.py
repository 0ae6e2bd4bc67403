"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from flerm_core._files import atomic_path, atomic_write


def test_the_file_holds_what_was_written_and_nothing_is_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    atomic_write(target, "first, and longer")
    atomic_write(target, "é")
    assert target.read_bytes() == "é".encode()
    atomic_write(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_has_its_old_content_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic_write(target, "old")
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert partial.parent == tmp_path
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic_write(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_not_there_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "none" / "file", "text")
