"""The spool folder: where it is, its files, and the quarantine for refused files."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG, S_ISVTX

from flerm_client.spool.frames import SUFFIX
from flerm_core._files import make_private_folder, open_private
from flerm_core.errors import InvalidInput

log = logging.getLogger("flerm.spool")

QUARANTINE = "quarantine"
"""The subfolder for files that a registry refused for good."""


def default_folder() -> Path:
    """FLERM_SPOOL, else `$XDG_STATE_HOME/flerm/spool`, else `~/.local/state/flerm/spool`.

    Raises `InvalidInput` when none is set and the user has no home folder. (platformdirs would
    return a folder called `~` then.)
    """
    if named := os.environ.get("FLERM_SPOOL"):
        return Path(named).expanduser()
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "flerm" / "spool"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise InvalidInput("the user has no home folder: set FLERM_SPOOL to a folder") from error
    return home / ".local" / "state" / "flerm" / "spool"


def own_folder(folder: Path) -> Path:
    """`folder`, which is made where it is not there, after a check that no other user may write.

    Whoever may write to it could have this user's token deliver measurements, or replace targets.
    A folder of this user in which everybody may only touch what is theirs (the sticky bit, as on a
    tmpfs) is allowed: files of others in it are left alone. Raises `InvalidInput` for a folder that
    another user owns or may write to, and for one that cannot be made.
    """
    try:
        make_private_folder(folder)
        found = folder.stat()
        owners = {folder.lstat().st_uid, found.st_uid}  # of a link, and of what it leads to
    except OSError as error:
        raise InvalidInput(
            f"the spool folder {folder} cannot be made ({error.strerror}): "
            "set FLERM_SPOOL to one that can"
        ) from error
    if owners != {os.geteuid()}:
        raise InvalidInput(
            f"the spool folder {folder} belongs to another user, who could change what is sent: "
            "set FLERM_SPOOL to a folder of your own"
        )
    if found.st_mode & 0o022 and not found.st_mode & S_ISVTX:
        raise InvalidInput(
            f"the spool folder {folder} can be written by other users (mode "
            f"{found.st_mode & 0o777:04o}), who could change what is sent: chmod go-w it, "
            "or set FLERM_SPOOL to another"
        )
    return folder


def spool_files(folder: Path) -> list[Path]:
    """The spool files in `folder`, oldest first; none when there is no such folder.

    Links and whatever else is no plain file are left out. A file may be delivered and removed at
    any time.
    """
    found: list[tuple[float, Path]] = []
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if S_ISREG(status.st_mode):
            found.append((status.st_mtime, path))
    return [path for _, path in sorted(found)]


def sidecar(path: Path, suffix: str) -> Path:
    """The file beside a spool file that has the same name with another suffix.

    `.log`: the uploader's output. `.progress`: how much is delivered. `.why`, in quarantine: the
    reason of the refusal.
    """
    return path.with_name(path.name.removesuffix(SUFFIX) + suffix)


def remove(path: Path) -> None:
    """Removes a delivered file and its sidecars. Another sender may have removed them before."""
    for file in (path, sidecar(path, ".log"), sidecar(path, ".progress")):
        file.unlink(missing_ok=True)


def quarantine(path: Path, why: str) -> Path:
    """Moves a file that a registry refused for good to the quarantine; its new path.

    `why` is written beside it, unless the disk is full. A process that still writes the file can
    go on.
    """
    folder = own_folder(path.parent / QUARANTINE)
    target = folder / path.name
    try:
        path.rename(target)
    except FileNotFoundError:  # another sender has moved the file and written the reason
        return target
    reason = sidecar(target, ".why")
    try:
        with open_private(reason, "w", follow=False) as written:
            written.write(why.rstrip() + "\n")
    except OSError as error:
        log.warning("%s cannot be written: %s", reason, error.strerror)
        with contextlib.suppress(OSError):
            reason.unlink()
    sidecar(path, ".progress").unlink(missing_ok=True)
    return target


def quarantined(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files in the quarantine of the spool folder `folder`, each with the reason."""
    for path in spool_files(folder / QUARANTINE):
        why = sidecar(path, ".why")
        yield (
            path,
            why.read_text("utf-8", "replace").strip() if why.exists() else "no reason was written",
        )
