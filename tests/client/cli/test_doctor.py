"""What `flerm doctor` says of a token on its way."""

from __future__ import annotations

import pytest

from flerm_client.cli import main


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("address", "told"),
    [("grpc://192.0.2.1:1", True), ("grpcs://192.0.2.1:1", False), ("grpc://127.0.0.1:1", False)],
)
def test_a_token_that_others_could_read_is_noted(address, told, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FLERM_TOKEN", "flerm_0_0")
    monkeypatch.setattr("socket.create_connection", unreachable)
    assert main(["doctor", "--registry", address, "--spool", str(tmp_path)]) == 1
    assert ("is not encrypted on its way" in capsys.readouterr().out) is told
