"""A folder of spool files: where it is, what is in it, what is set aside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flerm_client.spool.frames import SUFFIX, FrameType
from flerm_client.spool.reader import Origin, SpoolReader, origin_of
from flerm_core.errors import DataLoss

QUARANTINE = "quarantine"


def default_folder() -> Path:
    """FLERM_SPOOL, else `$XDG_STATE_HOME/flerm/spool`, else `~/.local/state/flerm/spool`."""
    if named := os.environ.get("FLERM_SPOOL"):
        return Path(named).expanduser()
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "flerm" / "spool"


def spool_files(folder: Path) -> list[Path]:
    """The spool files in `folder`, oldest first; none when there is no such folder. Files may vanish meanwhile (delivered)."""
    found: list[tuple[float, Path]] = []
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            found.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue
    return [path for _, path in sorted(found)]


def origin(path: Path) -> Origin:
    """Who wrote `path`. Raises `DataLoss` when it does not say."""
    for frame in SpoolReader(path):
        if frame.kind == FrameType.OWNER:
            return origin_of(frame)
        break
    raise DataLoss(f"{path} does not say who wrote it")


def sidecar(path: Path, suffix: str) -> Path:
    """The file that stands beside a spool file: `.log` (the uploader's output), `.progress`, `.why` (in quarantine)."""
    return path.with_name(path.name.removesuffix(SUFFIX) + suffix)


def remove(path: Path) -> None:
    """Removes a delivered file and what stands beside it. Another sender may have been faster."""
    for file in (path, sidecar(path, ".log"), sidecar(path, ".progress")):
        file.unlink(missing_ok=True)


def quarantine(path: Path, why: str) -> Path:
    """Moves a file that a registry refused for good aside, the reason beside it; where it is now. Its writer may go on."""
    folder = path.parent / QUARANTINE
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / path.name
    try:
        path.rename(target)
    except FileNotFoundError:  # another sender has moved it, with its reason
        return target
    sidecar(target, ".why").write_text(why.rstrip() + "\n")
    sidecar(path, ".progress").unlink(missing_ok=True)
    return target


def quarantined(folder: Path) -> Iterator[tuple[Path, str]]:
    """What is set aside in `folder`: each file with the reason."""
    for path in spool_files(folder / QUARANTINE):
        why = sidecar(path, ".why")
        yield path, why.read_text().strip() if why.exists() else "no reason was written"
