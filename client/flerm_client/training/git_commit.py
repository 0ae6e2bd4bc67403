"""The commit of a working directory, found without running anything that the directory names.

A checkout may come from a stranger. Its own `.git/config` can name commands, for instance as
`core.fsmonitor` or as a filter, which git runs when it compares files. The comparison here
therefore uses a git directory of its own, without a configuration, and of the checkout's only the
index and the objects.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

SECONDS = 5.0  # a very slow file system is not waited for


def git_commit(folder: str) -> str:
    """The commit id of `folder`, with `+changes` where files differ from the commit.

    Empty where that cannot be found out: no repository, no git, a repository of another user.
    """
    # These questions run no command of the configuration: they read neither index nor objects.
    asked = ("--show-toplevel", "--absolute-git-dir", "--show-object-format", "--git-common-dir")
    found = _git(folder, "rev-parse", *asked, "HEAD")
    lines = found.stdout.splitlines() if found is not None and not found.returncode else []
    if len(lines) != len(asked) + 1:
        return ""
    top, own, digest, common, commit = lines
    objects = Path(folder, common).absolute() / "objects"
    try:
        with tempfile.TemporaryDirectory(prefix="flerm-git-") as empty:
            compared = _compare(top, Path(own), objects, digest, commit, Path(empty))
    except OSError:  # nowhere to write
        return ""
    if compared is None or compared.returncode not in (0, 1):
        return ""
    return f"{commit}+changes" if compared.returncode else commit


def _compare(
    top: str, own: Path, objects: Path, digest: str, commit: str, empty: Path
) -> subprocess.CompletedProcess[str] | None:
    """`git diff` with `empty` as the git directory; exit code 1 where files differ."""
    version = 0 if digest == "sha1" else 1
    extension = "" if digest == "sha1" else f"[extensions]\nobjectformat = {digest}\n"
    (empty / "config").write_text(f"[core]\nrepositoryformatversion = {version}\n{extension}")
    (empty / "HEAD").write_text(f"{commit}\n")
    (empty / "refs").mkdir()
    return _git(
        top,
        *("diff", "--quiet", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all", commit),
        GIT_DIR=str(empty),
        GIT_WORK_TREE=top,
        GIT_INDEX_FILE=str(own / "index"),
        GIT_OBJECT_DIRECTORY=str(objects),
        GIT_CONFIG_GLOBAL=os.devnull,
    )


def _git(
    folder: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str] | None:
    """A git command; None where there is no git, or where it takes too long."""
    settings = ("core.fsmonitor=", f"core.hooksPath={os.devnull}")
    command = ["git", *(word for each in settings for word in ("-c", each)), *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_CONFIG")}
    safe = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1"}
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=kept | safe | environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
