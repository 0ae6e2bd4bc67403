"""Connections are lent in the order in which calls ask, where there are too few for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from waiting import until

from flerm_server.store.sql.lending import Lending


class Refused(Exception):
    pass


class FewConnections:
    """A database that gives so many connections and no more."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.used = allowed, 0
        self.lending = Lending()
        self._lock = threading.Lock()

    def connect(self) -> int:
        with self._lock:
            if self.used >= self.allowed:
                raise Refused
            self.used += 1
            return self.used

    def take(self, seconds: float = 20.0) -> int:
        return self.lending.take(self.connect, Refused, seconds)

    def give_back(self) -> None:
        with self._lock:
            self.used -= 1
        self.lending.give_back()


def in_background(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_calls_that_follow_each_other_closely_pass_nobody_who_waits() -> None:
    database = FewConnections(1)
    database.take()
    served: list[str] = []

    def call(name: str) -> None:
        database.take()
        served.append(name)
        database.give_back()

    waiting = []
    for at in range(4):
        waiting.append(in_background(lambda name=f"waiting {at}": call(name)))
        until(lambda at=at: len(database.lending._line) == at + 1, "nobody waits")
    database.give_back()
    for _ in range(100):
        call("later")
    for each in waiting:
        each.join(20)
    assert served[:4] == [f"waiting {at}" for at in range(4)]
    assert len(served) == 104


def test_a_refusal_is_raised_at_once_where_nothing_is_lent() -> None:
    database = FewConnections(0)
    began = time.monotonic()
    with pytest.raises(Refused):
        database.take()
    assert time.monotonic() - began < 5


def test_a_refusal_is_raised_after_the_wait() -> None:
    database = FewConnections(1)
    database.take()
    began = time.monotonic()
    with pytest.raises(Refused):
        database.take(0.2)
    assert 0.2 <= time.monotonic() - began < 10


def test_all_who_wait_learn_that_nothing_is_lent_any_more() -> None:
    database = FewConnections(1)
    database.take()
    refused: list[str] = []

    def call() -> None:
        try:
            database.take()
        except Refused:
            refused.append("refused")

    waiting = [in_background(call) for _ in range(8)]
    until(lambda: len(database.lending._line) == 8, "not all wait")
    database.allowed = 0
    database.give_back()
    for each in waiting:
        each.join(10)
    assert len(refused) == 8


def test_all_who_wait_are_served_soon_once_there_are_more_connections() -> None:
    database = FewConnections(1)
    database.take()
    waiting = [in_background(database.take) for _ in range(8)]
    until(lambda: len(database.lending._line) == 8, "not all wait")
    database.allowed = 9
    database.give_back()
    for each in waiting:
        each.join(10)
    assert database.used == 8
