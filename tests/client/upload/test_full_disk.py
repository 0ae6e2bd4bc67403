"""A disk that is full when a run begins: training goes on, and what comes once there is room is delivered."""

from __future__ import annotations

import errno
import os

from spooled import row_of, spec_of

from flerm_client import RegistryClient
from flerm_client.upload.reporter import SpoolReporter
from flerm_core.records.recording import Attempt, Ending


def test_no_empty_file_is_left_and_later_measurements_arrive(registry, tmp_path, monkeypatch):
    # A full disk cannot be had without root's mounts: this is what the kernel answers then.
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    spec = spec_of("full-disk")
    with monkeypatch.context() as patched:
        patched.setattr("flerm_client.spool.writer.os.write", full)
        reporter = SpoolReporter.open(registry.address, spec, Attempt(), spool=tmp_path)
        reporter.append(row_of(1))
        assert list(tmp_path.glob("*.spool")) == []
    reporter.append(row_of(2))
    reporter.append(row_of(3))
    delivery = reporter.finish(Ending(final_loss=0.5), timeout=30.0)
    assert (
        delivery.left == 1
        and "1 of 3 measurements" in delivery.problem
        and "are lost" in delivery.problem
    )
    with RegistryClient(registry.address) as client:
        assert client.trajectory(spec.id).steps.tolist() == [2, 3]
    assert list(tmp_path.glob("*.spool")) == []
