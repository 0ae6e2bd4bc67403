"""Names as cells of CSV files, which people open in spreadsheets."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def text_cell(text: str) -> str:
    """`text`, with an apostrophe before what a spreadsheet would run as a formula.

    Names come from whoever records. Numbers are no texts and stay as they are.
    """
    return f"'{text}" if text.startswith(_FORMULA) else text
