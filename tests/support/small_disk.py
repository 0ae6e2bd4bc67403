"""A file system that is soon full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(
    folder: Path, *, megabytes: int, owner: os.stat_result | None = None
) -> Iterator[Path]:
    """A file system of so many megabytes at `folder`, while the block runs.

    owner: whose it is; None: this process's. Where none may be mounted the test fails; it is not
    skipped.
    """
    as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
    user, group = (os.getuid(), os.getgid()) if owner is None else (owner.st_uid, owner.st_gid)
    subprocess.run([*as_root, "mkdir", "-p", str(folder)], check=True)
    options = f"size={megabytes}m,uid={user},gid={group}"
    mount = [*as_root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.fail(
            "the tests must be allowed to mount a tmpfs, as root or by sudo: "
            f"{mounted.stderr.strip()}"
        )
    try:
        yield folder
    finally:
        subprocess.run([*as_root, "umount", "--lazy", str(folder)], check=True)
