"""The commit of a working directory, which may be a stranger's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from flerm_client.training.git_commit import git_commit


class Repository:
    """A repository with one file in one commit."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", *options)
        self.git("config", "user.name", "n")
        self.git("config", "user.email", "e@example.org")
        (folder / "file").write_text("one\n")
        self.git("add", "file")
        self.git("commit", "-q", "-m", "first")
        self.commit = self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", self.folder, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_a_clean_and_a_changed_checkout_are_told_apart(repository: Repository):
    inside = repository.folder / "inside"
    inside.mkdir()
    (inside / "untracked").touch()
    for folder in (repository.folder, inside):
        assert git_commit(str(folder)) == repository.commit
    os.utime(repository.folder / "file", (1, 1))  # touched, with the same content
    assert git_commit(str(repository.folder)) == repository.commit
    (repository.folder / "file").write_text("two\n")
    assert git_commit(str(inside)) == f"{repository.commit}+changes"
    repository.git("commit", "-aqm", "second")
    (repository.folder / "file").unlink()
    assert git_commit(str(inside)) == f"{repository.git('rev-parse', 'HEAD')}+changes"


def test_worktrees_and_repositories_of_other_digests_are_read_too(
    repository: Repository, tmp_path: Path
):
    repository.git("worktree", "add", "-q", str(tmp_path / "beside"))
    assert git_commit(str(tmp_path / "beside")) == repository.commit
    (tmp_path / "beside" / "file").write_text("two\n")
    assert git_commit(str(tmp_path / "beside")) == f"{repository.commit}+changes"
    other = Repository(tmp_path / "other", "--object-format=sha256")
    assert len(other.commit) == 64 and git_commit(str(other.folder)) == other.commit


def test_where_there_is_no_commit_there_is_no_answer(tmp_path: Path):
    assert git_commit(str(tmp_path)) == ""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert git_commit(str(tmp_path)) == ""
    assert git_commit(str(tmp_path / "gone")) == ""


def test_a_checkout_of_a_stranger_runs_nothing(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = tmp_path / "ran"
    command = f"touch {ran}"
    nested = Repository(repository.folder / "nested")
    repository.git("-c", "advice.addEmbeddedRepo=false", "add", "nested")
    (repository.folder / ".gitattributes").write_text("* filter=evil diff=evil\n")
    repository.git("add", ".gitattributes")
    repository.git("commit", "-qm", "second")
    for settings in (repository, nested):
        for name in ("core.fsmonitor", "filter.evil.clean", "filter.evil.process",
                     "diff.external", "diff.evil.command", "diff.evil.textconv",
                     "core.sshCommand", "core.pager", "core.editor"):  # fmt: skip
            settings.git("config", name, f"{command};cat")
        settings.git("config", "filter.evil.required", "true")
        settings.git("config", "core.hooksPath", str(tmp_path / "hooks"))
        # A commit that is missing here is fetched by a command.
        settings.git("config", "protocol.ext.allow", "always")
        settings.git("config", "remote.evil.url", f"ext::sh -c '{command}'")
        settings.git("config", "remote.evil.promisor", "true")
        settings.git("config", "extensions.partialClone", "evil")
        settings.git("config", "core.repositoryFormatVersion", "1")
    for folder in (repository.folder, nested.folder):
        (folder / "file").write_text("two, longer\n")
    os.utime(repository.folder / ".gitattributes", (1, 1))
    monkeypatch.chdir(repository.folder)
    assert git_commit(".").endswith("+changes")
    head = (
        repository.folder / ".git" / (repository.folder / ".git" / "HEAD").read_text()[5:].strip()
    )
    head.write_text("1" * 40 + "\n")
    git_commit(".")
    assert not ran.exists()
