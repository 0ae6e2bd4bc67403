"""Addresses and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from spooled import spec_of

from flerm_client import RegistryClient
from flerm_client.registry.address import address_of, token_of
from flerm_client.upload.reporter import check_reporting
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


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(InvalidInput) as caught:
        address_of("grpc://me:hunter2@registry:50051")
    assert "hunter2" not in str(caught.value) and "grpc://registry:50051" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("grpc://127.0.0.1:1", False),
        ("grpc://127.9.9.9:1", False),
        ("grpc://localhost:1", False),
        ("grpc://[::1]:1", False),
        ("grpcs://registry.example:1", False),
        ("grpc://registry.example:1", True),
        ("grpc://127.0.0.1.example.org:1", True),
        ("grpc://127.evil:1", True),
        ("grpc://localhost.evil:1", True),
        ("grpc://0.0.0.0:1", True),
        ("grpc://10.0.0.7:1", True),
    ],
)
def test_where_others_could_read_a_token(text, is_open, monkeypatch):
    monkeypatch.delenv("FLERM_INSECURE", raising=False)
    address = address_of(text)
    assert address.is_open is is_open
    if is_open:
        with pytest.raises(Unauthenticated, match="FLERM_INSECURE=1"):
            address.refuse_open_token("mine")
        with RegistryClient(text, "mine") as client, pytest.raises(Unauthenticated, match="grpcs"):
            client.info()
        monkeypatch.setenv("FLERM_INSECURE", "1")
    address.refuse_open_token("mine")


def test_a_run_whose_token_could_be_read_ends_before_its_first_step(monkeypatch, tmp_path):
    monkeypatch.delenv("FLERM_INSECURE", raising=False)
    with pytest.raises(Unauthenticated, match="FLERM_INSECURE=1"):
        check_reporting("grpc://10.0.0.7:1", spec_of("f"), tmp_path, "mine")
    monkeypatch.delenv("FLERM_TOKEN", raising=False)
    monkeypatch.delenv("FLERM_TOKEN_FILE", raising=False)
    check_reporting("grpc://10.0.0.7:1", spec_of("f"), tmp_path)


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
