"""How much of a spool file is delivered, in a file beside it."""

from __future__ import annotations

from flerm_client.upload.progress import DeliveryProgress


def test_what_is_written_is_read_and_nothing_yet_is_zero(tmp_path):
    path = tmp_path / "a.spool"
    assert DeliveryProgress.of(path) == DeliveryProgress(0, 0, "")
    written = DeliveryProgress(acknowledged=3, refused=1, problem="no network")
    assert written.write(path)
    assert DeliveryProgress.of(path) == written
    (tmp_path / "a.progress").write_text("{")
    assert DeliveryProgress.of(path) == DeliveryProgress()


def test_a_disk_that_refuses_it_is_no_error(tmp_path):
    assert not DeliveryProgress().write(tmp_path / "no such folder" / "a.spool")
