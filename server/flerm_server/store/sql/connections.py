"""How the connections to one database are made, begun, and given up when the database fails."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from flerm_core.errors import FlermError
from flerm_server.presence import Presence
from flerm_server.store.sql.compiled_statements import Rows, Statement
from flerm_server.store.sql.lending import Lending

POOL_SECONDS = 5  # how long a call waits for a connection of the pool
ROOM_BYTES = 512 << 10  # with less room on its disk a database counts as full


@dataclass(frozen=True, slots=True)
class TransactionKind:
    """What a transaction is for.

    writes: it may write.
    snapshot: its statements all read the same state of the database.
    unhurried: its statements may take any time; for commands of an operator.
    """

    writes: bool = False
    snapshot: bool = False
    unhurried: bool = False


class Connections(ABC):
    """The driver's connections to one database.

    A connection has the attribute `number`: connections are counted in the order in which they are
    made. After a failure of the database no connection made until then is trusted.
    """

    def __init__(self) -> None:
        """Connects at the first use."""
        self._counting = threading.Lock()
        self.lending = Lending()
        self.newest = 0
        self._distrusted = 0

    def open(self) -> Any:
        """A new connection of the driver."""
        connection = self._connect()
        with self._counting:
            self.newest += 1
            connection.number = self.newest
        return connection

    def trusts(self, connection: Any) -> bool:
        """Whether the database has not failed since this connection was made."""
        return bool(connection.number > self._distrusted)

    def distrust(self, connection: Any) -> None:
        """Trusts no connection any more that is as old as this one."""
        with self._counting:
            self._distrusted = max(self._distrusted, connection.number)

    @abstractmethod
    def _connect(self) -> Any:
        """A new connection, without its number."""

    @abstractmethod
    def begin(
        self, connection: Any, kind: TransactionKind, first: Sequence[Statement] = ()
    ) -> list[Rows]:
        """Begins a transaction, and returns what its `first` statements find.

        Raises an error of the driver, or `Unreachable`, for a connection that cannot be used any
        more.
        """

    @abstractmethod
    def commit(self, connection: Any, last: Sequence[Statement] = ()) -> None:
        """Executes the `last` statements of a transaction and commits it."""

    @abstractmethod
    def confirm(self, connection: Any) -> None:
        """Raises `Unreachable` where the transaction just committed may not be durable."""

    @abstractmethod
    def attended(self, connection: Any, presence: Presence) -> AbstractContextManager[None]:
        """Ends the statements of the block soon after the caller has left; they then fail.

        Raises `CallerGone` where the caller had left before the block began.
        """

    @abstractmethod
    def require_room(self, connection: Any) -> None:
        """Raises an error of the driver, or `Unreachable`, where the disk has no `ROOM_BYTES` left.

        connection: in a transaction. Nothing stays on the disk.
        """

    @abstractmethod
    def is_answer(self, error: BaseException) -> bool:
        """Whether an error of `begin` is one that another connection would get too."""

    @abstractmethod
    def has_failed(self, connection: Any, error: Exception) -> bool:
        """Whether an error of the driver says that the database went away or stopped writing."""

    @abstractmethod
    def explain(self, error: Exception) -> FlermError | None:
        """The error of ours for one of the driver's that only this database has; None: no such."""

    @abstractmethod
    def close(self) -> None:
        """Gives up what is held beside the connections, after these were closed."""
