"""Calls of a registry in this process that stay open for as long as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from flerm_server.rpc.service import RegistryService

SECONDS = 20  # a test that fails does not hold its server for longer


def hold_trajectories(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Servers made from now on send a trajectory's header, and its rows when the event is set."""
    released, original = threading.Event(), RegistryService.GetTrajectory

    def held(
        service: RegistryService, request: Any, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        chunks = original(service, request, context)
        yield next(chunks)
        released.wait(SECONDS)
        yield from chunks

    monkeypatch.setattr(RegistryService, "GetTrajectory", held)
    return released


def hold_appends(monkeypatch: pytest.MonkeyPatch, holds: Callable[[Any], bool]) -> threading.Event:
    """Servers made from now on answer the appends that `holds` chooses when the event is set.

    They answer other appends at once.
    """
    released, original = threading.Event(), RegistryService.Append

    def held(service: RegistryService, request: Any, context: grpc.ServicerContext) -> Any:
        answer = original(service, request, context)
        if holds(request):
            released.wait(SECONDS)
        return answer

    monkeypatch.setattr(RegistryService, "Append", held)
    return released
