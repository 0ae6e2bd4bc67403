"""Addresses and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from flerm_client.registry.address import address_of, token_of
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
