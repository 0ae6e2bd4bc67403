"""The depth rules and their names."""

from __future__ import annotations

from flerm_core.matching.depth_rules import DEFAULT_DEPTH, DEPTH_RULES
from flerm_core.records.queries import DEPTH_RULE_NAMES


def test_a_query_may_name_every_rule_and_no_other() -> None:
    assert tuple(DEPTH_RULES) == DEPTH_RULE_NAMES
    assert DEFAULT_DEPTH in DEPTH_RULE_NAMES
