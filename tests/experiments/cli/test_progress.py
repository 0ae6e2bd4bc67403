"""What a sweep does when it is told to end."""

from __future__ import annotations

import os
import signal

import pytest

from flerm_experiments.cli.progress import end_with_children


def test_a_second_sigterm_does_not_interrupt_the_ending() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        end_with_children()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
