"""Log lines hold no secret, on a terminal and in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from flerm_core.errors import InvalidInput, Unreachable
from flerm_server.auth.credentials import SESSION, TOKEN, Secret
from flerm_server.logs import public_sentence

TOKEN_TEXT, SESSION_TEXT = (Secret.generate(each).text for each in (TOKEN, SESSION))
PROGRAM = """
import logging, sys, structlog
from flerm_server.logs import configure
configure("info")
token, session = sys.argv[1:]
URL = "postgresql://flerm:hunter2@db.example/flerm?password=hunter2&x=1"
def bug(authorization):
    cookie = {"flerm_session": session}
    more = "in 'password=hunter2', \\"password=hunter2\\""
    raise ValueError(f"{authorization} {session} at {URL}, {more}")
for log in (lambda **more: structlog.get_logger().error("bug", url=URL, **more),
            lambda **more: logging.getLogger("uvicorn.error").error(URL, **more)):
    structlog.get_logger().warning("asked", path="/x\\x1b]0;owned\\x07\\u202e")
    try:
        bug(f"Bearer {token}")
    except ValueError as error:
        log(exc_info=error)
"""


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        (
            "the database postgresql://db.example:5432/flerm does not answer: connection to server "
            'at "db.example" (10.0.0.1), port 5432 failed: FATAL:  database "flerm" is closed',
            "the database does not answer: connection to server failed: FATAL:  database is closed",
        ),
        ("the database file /srv/flerm.db is not there", "the database file is not there"),
        (
            "the database postgresql://h1:1,h2/d does not answer: failed to resolve host 'h1': no",
            "the database does not answer: failed to resolve host: no",
        ),
        (
            'connection to server on socket "/run/pg/.s.PGSQL.5432" failed: no such file',
            "connection to server failed: no such file",
        ),
        (
            'password authentication failed for user "flerm"',
            "password authentication failed for user",
        ),
    ],
)
def test_callers_are_not_told_where_the_database_is(sentence: str, told: str):
    assert public_sentence(Unreachable(sentence)) == told
    assert public_sentence(InvalidInput(sentence)) == sentence


def secrets_in(text: str) -> list[str]:
    own = [each.split("_", 2)[2] for each in (TOKEN_TEXT, SESSION_TEXT)]
    return [each for each in (*own, "hunter2") if each in text]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_traceback_has_no_secret(terminal: bool):
    reader, writer = os.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", PROGRAM, TOKEN_TEXT, SESSION_TEXT]
    ended = subprocess.run(command, stderr=writer, timeout=60)
    os.close(writer)
    found = b""
    try:
        while part := os.read(reader, 65536):
            found += part
    except OSError:  # the terminal's end
        pass
    os.close(reader)
    text = found.decode()
    assert ended.returncode == 0, text
    assert text.count("ValueError") >= 2 and "in bug" in text  # the traceback is there
    assert TOKEN_TEXT.rpartition("_")[0][:18] in text  # and says whose token it was
    assert secrets_in(text) == []
    assert "]0;owned" in text and "\x1b]0;" not in text and "\u202e" not in text
    if not terminal:
        levels = [json.loads(line)["level"] for line in text.splitlines()]
        assert levels == ["warning", "error"] * 2
