"""Addresses, tokens, child processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flerm_client.registry.address import (
    address_of,
    child_command,
    child_environment,
    token_of,
)
from flerm_core.errors import InvalidInput, Unauthenticated


@pytest.mark.parametrize(
    ("text", "scheme", "target"),
    [
        ("grpc://registry:50051", "grpc", "registry:50051"),
        ("grpcs://registry.example.org", "grpcs", "registry.example.org:50051"),
        ("grpc://[::1]:7", "grpc", "[::1]:7"),
    ],
)
def test_addresses_of_servers(text, scheme, target):
    address = address_of(text)
    assert (address.scheme, address.target, address.folder) == (scheme, target, None)


def test_a_folder_is_an_address():
    assert address_of("file:///tmp/my%20runs").folder == Path("/tmp/my runs")


@pytest.mark.parametrize(
    "text",
    [
        "localhost:50051",
        "http://x:1",
        "grpc://",
        "grpc://h:port",
        "file://relative",
        "grpc://h/path",
    ],
)
def test_what_is_no_address_is_named_with_the_forms_allowed(text):
    with pytest.raises(InvalidInput) as caught:
        address_of(text)
    assert repr(text) in str(caught.value) and "grpc://host:port" in str(caught.value)


def test_the_address_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("FLERM_REGISTRY", raising=False)
    with pytest.raises(InvalidInput, match="FLERM_REGISTRY"):
        address_of()
    monkeypatch.setenv("FLERM_REGISTRY", "grpc://h:1")
    assert address_of().target == "h:1"


def test_a_token_file_is_read_anew_each_time(monkeypatch, tmp_path):
    monkeypatch.delenv("FLERM_TOKEN", raising=False)
    file = tmp_path / "token"
    monkeypatch.setenv("FLERM_TOKEN_FILE", str(file))
    token = token_of()
    with pytest.raises(Unauthenticated, match="cannot be read"):
        token()
    file.write_text("one\n")
    assert token() == "one"
    file.write_text("two\n")
    assert token() == "two"
    assert token_of("given")() == "given"


def test_a_child_finds_our_packages_and_not_what_lies_in_the_working_directory(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    command = child_command("flerm_client.registry.query_process", "--help")
    done = subprocess.run(
        command,
        env=child_environment("secret"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "secret" not in " ".join(command)


def test_importing_the_package_is_fast_and_brings_neither_torch_nor_grpc_nor_numpy():
    code = (
        "import sys, time; begin = time.process_time(); import flerm_client; taken = time.process_time() - begin; "
        "print(taken < 0.05, sorted({'torch', 'grpc', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "True []"


def test_the_reporter_brings_neither_torch_nor_grpc():
    code = "import sys, flerm_client.upload.reporter, flerm_client.registry.query_process; print(sorted({'torch', 'grpc'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
