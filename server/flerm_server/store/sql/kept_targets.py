"""Targets that were computed before, kept while no run of their family changes.

The runs of a sweep ask for the same targets one after the other. The database counts the changes of
each family's runs (see `change_counts`), so that an old answer is known to be right.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import sqlalchemy as sa

from flerm_core.matching.targets import Targets
from flerm_server.store.sql.compiled_statements import Prepared
from flerm_server.store.sql.engine import driver_transaction
from flerm_server.store.sql.tables import families

MAX_BYTES = 32 << 20  # of all answers in memory
MAX_ANSWER_BYTES = MAX_BYTES // 4

_STATE = Prepared(
    sa.select(families.c.key, families.c.revision, sa.cast(families.c.blocks, sa.Text)).where(
        families.c.name == sa.bindparam("name")
    )
)

Key = tuple[str, str, tuple[object, ...]]
"""Family, question, and the state of the family."""


class KeptTargets:
    """The targets that were asked for last. Callers may be on any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        """Keeps nothing yet."""
        self._engine = engine
        self._kept: OrderedDict[Key, Targets] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, family: str, asked: str, compute: Callable[[], Targets]) -> Targets:
        """See `Store.kept`."""
        # Read before the targets are computed: where a run changes meanwhile, they are kept under a
        # state that is past.
        with driver_transaction(self._engine) as driver:
            state = _STATE.all(driver, {"name": family})
        key = family, asked, tuple(state)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        found = compute()
        size = _bytes(found)
        if size <= MAX_ANSWER_BYTES:
            with self._lock:
                if key not in self._kept:
                    self._kept[key] = found
                    self._bytes += size
                while self._bytes > MAX_BYTES:
                    _, oldest = self._kept.popitem(last=False)
                    self._bytes -= _bytes(oldest)
        return found


def _bytes(targets: Targets) -> int:
    """About the memory that targets take: 100 bytes for each name and each source."""
    arrays = (targets.table, targets.spread, targets.steps, targets.tokens)
    return sum(each.nbytes for each in arrays) + 100 * (len(targets.names) + len(targets.sources))
