"""Pairs written as key=value: the same on the command line and in REST's queries."""

from __future__ import annotations

import pytest

from flerm_core.errors import InvalidInput
from flerm_core.records.key_value_pairs import key_value_pairs


def test_values_are_by_key_and_may_be_empty_or_have_an_equals_sign() -> None:
    assert key_value_pairs("tag", None) == {}
    pairs = ["a=1", "b=", "c=x=y", "a=1"]
    assert key_value_pairs("tag", pairs) == {"a": "1", "b": "", "c": "x=y"}


@pytest.mark.parametrize("pair", ["steps", "=600", ""])
def test_what_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        key_value_pairs("pick", [pair], "setting=value")
    assert str(refused.value) == f"pick: {pair!r} is not of the form setting=value"


def test_two_values_of_a_key_are_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        key_value_pairs("--tag", ["a=1", "a=2"])
    assert str(refused.value) == ("--tag: 'a=2' beside 'a=1'; only one value of a key is allowed")
