"""Readers of a registry's pages, each a process of its own.

Threads of the process that measures would take its interpreter's lock from the job that is
measured, as no reader elsewhere does.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier, Event
from typing import Any

import httpx

SECONDS = 60.0  # for a page, and for a reader to begin or end


@contextmanager
def reading(addresses: Sequence[str], headers: Mapping[str, str]) -> Iterator[list[int]]:
    """While the block runs, a reader of each address loads its page again and again.

    Afterwards the list holds how many pages each has loaded.
    """
    context = multiprocessing.get_context("spawn")
    begun, stop = context.Barrier(len(addresses) + 1), context.Event()
    counts = [context.Value("q", 0) for _ in addresses]
    readers = [
        context.Process(target=_read, args=(each, dict(headers), begun, stop, count), daemon=True)
        for each, count in zip(addresses, counts, strict=True)
    ]
    for reader in readers:
        reader.start()
    loaded: list[int] = []
    try:
        begun.wait(SECONDS)
        yield loaded
    finally:
        stop.set()
        for reader in readers:
            reader.join(SECONDS)
    loaded += [count.value for count in counts]


def _read(
    address: str, headers: Mapping[str, str], begun: Barrier, stop: Event, count: Any
) -> None:
    with httpx.Client(timeout=SECONDS, headers=headers) as web:
        web.get(address).raise_for_status()
        begun.wait(SECONDS)
        while not stop.is_set():
            web.get(address).raise_for_status()
            count.value += 1
