"""What commands say of a database's URL: nothing that is secret in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flerm_server.cli import app

WARNING = "every user of this host can read command lines"
URLS = (
    "postgresql://flerm:S3CRET@127.0.0.1:1/flerm",
    "postgresql://flerm@127.0.0.1:1/flerm?password=S3CRET",
    "postgresql://flerm:S3CRET@127.0.0.1:1,127.0.0.1:2/flerm",
    "postgres://flerm:S3CRET@127.0.0.1:1/flerm",
    "postgresql://flerm:S3/CRET@127.0.0.1:x/flerm",
    "mysql://flerm:S3CRET@127.0.0.1:1/flerm",
    "postgresql://flerm:S3CRET@[::1/flerm",
    "host=127.0.0.1 user=flerm password=S3CRET",
    "sqlite:///flerm.db?password=S3CRET",
)
COMMANDS = (("db", "check"), ("db", "upgrade"), ("token", "list"), ("serve",))


@pytest.mark.parametrize("url", URLS)
def test_no_command_repeats_a_password(url: str):
    for command in COMMANDS:
        by_file = CliRunner(env={"FLERM_DB": url}).invoke(app, command)
        by_line = CliRunner().invoke(app, [*command, "--db", url])
        for ended in (by_file, by_line):
            assert ended.exit_code in (2, 4, 5), ended.output
            assert isinstance(ended.exception, SystemExit), ended.exception  # a sentence
            assert "S3" not in ended.output and "CRET" not in ended.output
        assert WARNING not in by_file.output
        # Of what is no URL that is said alone.
        assert (WARNING in by_line.output) is (by_line.exit_code != 2)


def test_without_a_password_nothing_is_warned_of(tmp_path: Path):
    ended = CliRunner().invoke(app, ["db", "check", "--db", f"sqlite:///{tmp_path}/none.db"])
    assert (ended.exit_code, WARNING in ended.output) == (3, False)


def test_a_bug_shows_no_local_variables(tmp_path: Path):
    program = (
        "import sys, flerm_server.store.sql.schema as schema\n"
        "def bug(engine):\n"
        "    url = engine.url.render_as_string(hide_password=False)\n"
        "    raise KeyError('bug')\n"
        "schema.upgrade = bug\n"
        "from flerm_server.cli import app\n"
        "app(['db', 'upgrade'])\n"
    )
    environment = {"FLERM_DB": "postgresql://flerm:S3CRET@127.0.0.1:1/flerm", "COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1 and "KeyError: 'bug'" in ended.stderr
    assert "S3CRET" not in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("db", "backup", "{tmp}/none/copy.db"),
        ("db", "backup", "{tmp}/file/copy.db"),
        ("db", "restore", "{tmp}"),
        ("db", "restore", "{tmp}/file"),
        ("serve", "--announce", "{tmp}/none/a.json"),
        ("serve", "--tls-cert", "{tmp}", "--tls-key", "{tmp}"),
    ],
)
def test_what_an_operator_gets_wrong_is_a_sentence(tmp_path: Path, arguments: tuple[str, ...]):
    (tmp_path / "file").write_text("no database")
    db = f"sqlite:///{tmp_path}/registry.db"
    assert CliRunner().invoke(app, ["db", "upgrade", "--db", db]).exit_code == 0
    more = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0") if arguments[0] == "serve" else ()
    asked = [each.format(tmp=tmp_path) for each in arguments]
    ended = CliRunner().invoke(app, [*asked, *more, "--db", db])
    assert isinstance(ended.exception, SystemExit), ended.exception
    assert ended.exit_code in (2, 3, 5) and ended.stderr.count("\n") == 1, ended.stderr
