"""A family that the commands read, and an environment without the user's own settings."""

from __future__ import annotations

import uuid

import pytest
from spooled import spec_of, write_run

from flerm_client.cli import main
from flerm_core.records.recording import Ending


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The user's registry, token and spool are not used."""
    for name in ("FLERM_REGISTRY", "FLERM_TOKEN", "FLERM_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLERM_SPOOL", str(tmp_path / "spool"))


@pytest.fixture
def sweep(registry, tmp_path, monkeypatch):
    """A family of three recordings, in FLERM_REGISTRY; its name, and the id at lr 0.002."""
    family = f"cli-{uuid.uuid4().hex[:12]}"
    specs = {lr: spec_of(family, lr) for lr in (1e-3, 2e-3, 4e-3)}
    for lr, spec in specs.items():
        loss = 0.5 if lr == 2e-3 else 0.9
        write_run(tmp_path / "sent", spec, [1, 101], ending=Ending(final_loss=loss, final_step=101))
    monkeypatch.setenv("FLERM_REGISTRY", registry.address)
    assert main(["sync", "--spool", str(tmp_path / "sent"), "--json"]) == 0
    return family, specs[2e-3].id
