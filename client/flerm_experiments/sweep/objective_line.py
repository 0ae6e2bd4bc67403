"""The loss that a run printed, as a user's regular expression finds it."""

from __future__ import annotations

import re

_NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|(?:[nN]a[nN]|[iI]nf(?:inity)?)\b)"


def last_value(pattern: str, text: str) -> str | None:
    """What the last match of `pattern` in `text` has in its group; None without a match.

    A group that is written for usual numbers, such as `([0-9.]+)`, does not match `nan`, takes 1.2
    of `1.2e-05`, and 0.5 of `-0.5`. The loss would then be that of an earlier line, or another
    number. So a number that begins or ends beyond the group counts as a whole, and a later line
    that the pattern would match with any number in the group's place counts as the last.

    pattern: a regular expression with one group, which begins lines with ^ and ends them with $.
    """
    found = _last(re.compile(pattern, re.MULTILINE), text)
    wider = _with_any_number(pattern)
    number = _last(wider, text) if wider is not None else None
    if (
        number is not None
        and number[1]
        and (found is None or _goes_beyond(number.span(1), found.span(1)))
    ):
        return str(number[1])
    return None if found is None else str(found[1] or "")


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found


def _goes_beyond(number: tuple[int, int], found: tuple[int, int]) -> bool:
    """Whether the span of a number lies behind that of the group's match, or contains it."""
    return number[0] >= found[1] or (number[0] <= found[0] and number[1] >= found[1])


def _with_any_number(pattern: str) -> re.Pattern[str] | None:
    """`pattern` with any number in its group; None where the group is not found."""
    opened: list[int] = []
    start, at, in_set = -1, 0, False
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            at += 1
        elif in_set:
            in_set = letter != "]"
        elif letter == "[":
            in_set = True
            at += pattern[at + 1 : at + 2] in ("]", "^")  # []] and [^...] hold what comes next
        elif letter == "(":
            opened.append(at)
            if start < 0 and (pattern[at + 1 : at + 2] != "?" or pattern[at + 2 : at + 4] == "P<"):
                start = at
        elif letter == ")" and opened and opened.pop() == start:
            try:
                wider = re.compile(f"{pattern[:start]}({_NUMBER}){pattern[at + 1 :]}", re.MULTILINE)
            except re.error:
                return None
            return wider if wider.groups == 1 else None
        at += 1
    return None
