"""The arguments of record and match travel as one value, whose fields are the public signature."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from flerm_client import FLeRM
from flerm_client.training.run_options import MatchOptions, RecordOptions


@pytest.mark.parametrize(
    ("function", "options"), [(FLeRM.record, RecordOptions), (FLeRM.match, MatchOptions)]
)
def test_every_argument_is_a_field_and_every_field_an_argument(function, options):
    assert {each.name for each in fields(options)} == set(inspect.signature(function).parameters)


def test_one_block_axis_and_several_are_tuples():
    def axes(blocks):
        arguments = dict.fromkeys(each.name for each in fields(RecordOptions))
        return RecordOptions.of(arguments | {"blocks": blocks, "cls": FLeRM}).block_axes

    assert axes(None) == ()
    assert axes("layers.*") == ("layers.*",)
    assert axes(["layers.*", "experts.*"]) == ("layers.*", "experts.*")
