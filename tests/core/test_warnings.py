"""A warning points at the line of the user, not at one of the packages between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flerm_core import _warnings
from flerm_core._warnings import register_caller_package, warn

FRAMEWORK = "a_framework/trainer.py"


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function of a framework's module; it warns by our `warn`."""
    monkeypatch.setattr(_warnings, "_callers", set(_warnings._callers))
    module: dict[str, Any] = {"__name__": "a_framework.trainer", "warn": warn}
    exec(compile("def train():\n    warn('look here')\n", FRAMEWORK, "exec"), module)
    return module["train"]


def warned_at(call: Callable[[], None]) -> str:
    with pytest.warns(UserWarning, match="look here") as caught:
        call()
    return caught[0].filename


def test_a_warning_names_the_line_that_calls_flerm() -> None:
    assert warned_at(lambda: warn("look here")) == __file__


def test_a_warning_names_the_line_of_a_package_that_is_not_registered(
    trainer: Callable[[], None],
) -> None:
    assert warned_at(lambda: trainer()) == FRAMEWORK


def test_a_warning_names_the_line_that_calls_a_registered_package(
    trainer: Callable[[], None],
) -> None:
    register_caller_package("a_framework")
    assert warned_at(lambda: trainer()) == __file__
