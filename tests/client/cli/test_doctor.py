"""What `flerm doctor` says, and that it tried what it says is ok."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from spooled import spec_of, write_run
from waiting import until

from flerm_client.cli import main
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.sql.store import open_store
from tests.conftest import StartRegistry


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    ours = ("REGISTRY", "TOKEN", "TOKEN_FILE", "INSECURE")
    proxies = ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy")
    for name in (*(f"FLERM_{each}" for each in ours), *proxies):
        monkeypatch.delenv(name, raising=False)


def found(capsys, *arguments: object) -> dict[str, tuple[str, str]]:
    """What `flerm doctor` found: state and sentence by what it looked at."""
    code = main(["doctor", "--json", *map(str, arguments)])
    said = {
        each["what"]: (each["state"], each["says"]) for each in json.loads(capsys.readouterr().out)
    }
    assert code == any(state == "wrong" for state, _ in said.values())
    return said


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("address", "state"),
    [("grpc://192.0.2.1:1", "wrong"), ("grpcs://192.0.2.1:1", None), ("grpc://127.0.0.1:1", None)],
)
def test_a_token_that_others_could_read_is_told(address, state, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FLERM_TOKEN", "flerm_0_0")
    monkeypatch.setattr("socket.create_connection", unreachable)
    asked = ("--registry", address, "--spool", tmp_path)
    told = found(capsys, *asked).get("token")
    assert (told and told[0]) == state
    assert told is None or "FLERM_INSECURE=1" in told[1]
    monkeypatch.setenv("FLERM_INSECURE", "1")
    told = found(capsys, *asked).get("token")
    assert (told is not None and "is not encrypted on its way" in told[1]) is (state is not None)


def test_a_token_is_tried(start_registry: StartRegistry, capsys, monkeypatch, tmp_path):
    running = start_registry()
    asked = ("--registry", running.address, "--spool", tmp_path)
    assert found(capsys, *asked)["access"] == ("ok", "may read and write")
    store = open_store(running.db)
    tokens = {
        scope: SqlTokenStore(store.engine).create(scope, scope)[1].text
        for scope in ("read", "write")
    }
    store.close()
    for token, state, says in (
        (tokens["write"], "ok", "may read and write"),
        (tokens["read"], "note", "may read, and not record: token read"),
    ):
        monkeypatch.setenv("FLERM_TOKEN", token)
        told = found(capsys, *asked)
        assert told["token"][0] == state and told["token"][1].startswith(says)
        assert told["server"][0] == "ok" and token not in str(told)
    monkeypatch.setenv("FLERM_TOKEN", "flerm_000000000000_" + "A" * 43)
    # A server that began without tokens notices the first one within a second.
    until(lambda: found(capsys, *asked)["server"][0] == "wrong", "a wrong token was taken")


def test_a_token_file_that_others_can_read_is_noted(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("socket.create_connection", unreachable)
    file = tmp_path / "token"
    file.write_text("flerm_0_0")
    monkeypatch.setenv("FLERM_TOKEN_FILE", str(file))
    asked = ("--spool", tmp_path / "spool", "--registry", "grpcs://registry.example:1")
    for mode, noted in ((0o644, True), (0o640, True), (0o600, False)):
        file.chmod(mode)
        assert ("token file" in found(capsys, *asked)) is noted


def test_a_spool_is_tried(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FLERM_REGISTRY", tmp_path.as_uri())
    spool = tmp_path / "spool"
    assert found(capsys, "--spool", spool)["spool"][0] == "ok"
    assert list(spool.iterdir()) == []
    write_run(spool, spec_of("left"), [1], registry="grpc://127.0.0.1:1")
    assert "`flerm sync` sends them" in found(capsys, "--spool", spool)["spool"][1]
    spool.chmod(0o777)
    state, says = found(capsys, "--spool", spool)["spool"]
    assert state == "wrong" and "can be written by other users" in says
    (tmp_path / "file").touch()
    assert found(capsys, "--spool", tmp_path / "file")["spool"][0] == "wrong"
    state, says = found(capsys, "--spool", "/proc/none")["spool"]
    assert state == "wrong" and "/proc/none" in says


def test_a_folder_that_is_a_registry_is_tried(capsys, tmp_path):
    write_run(tmp_path / "runs", spec_of("kept"), [1])
    asked = ("--spool", tmp_path / "spool", "--registry")
    state, says = found(capsys, *asked, (tmp_path / "runs").as_uri())["folder"]
    assert (state, says.endswith("families: 1")) == ("ok", True)
    assert found(capsys, *asked, (tmp_path / "none").as_uri())["folder"][0] == "wrong"
    assert found(capsys, *asked, "file:///proc/self")["folder"][0] == "wrong"


def test_proxies_are_named_without_their_passwords(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("socket.create_connection", unreachable)
    asked = ("--spool", tmp_path, "--registry", "grpcs://registry.example:1")
    assert "proxy" not in found(capsys, *asked)
    monkeypatch.setenv("http_proxy", "http://me:hunter2@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "localhost")
    state, says = found(capsys, *asked)["proxy"]
    assert state == "note" and "hunter2" not in says
    assert says.startswith(
        "http_proxy=http://proxy.example:3128: gRPC goes to registry.example:1 through this proxy, "
        "unless no_proxy=localhost names it; no_grpc_proxy=registry.example"
    )
    assert "proxy" not in found(capsys, *asked[:3], "grpc://127.0.0.1:1")


def test_a_user_without_a_home_gets_a_sentence(tmp_path):
    program = (
        "import os, pathlib, sys\n"
        "def no_home(*_): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = classmethod(no_home)\n"
        "from flerm_client.cli import main\n"
        "sys.exit(main(['doctor', '--json']))\n"
    )
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment = {**kept, "FLERM_REGISTRY": Path(tmp_path).as_uri()}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    (told,) = (each for each in json.loads(ended.stdout) if each["what"] == "spool")
    assert (ended.returncode, told["state"]) == (1, "wrong")
    assert "set FLERM_SPOOL" in told["says"] and ended.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_a_full_disk_behind_the_output_is_a_sentence(tmp_path):
    command = [
        sys.executable,
        "-m",
        "flerm_client.cli",
        "families",
        "--registry",
        tmp_path.as_uri(),
    ]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "flerm: No space left on device\n")
