"""docs/api.md, the Python reference, is what the source says."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_python_reference_is_up_to_date() -> None:
    reference = runpy.run_path(str(DOCS / "api_reference.py"))["reference"]
    assert reference() == (DOCS / "api.md").read_text(), "run: make api-reference"


def test_every_argument_of_record_and_match_is_documented_or_documented_by_record() -> None:
    page = (DOCS / "api.md").read_text()
    record, match = (
        page.split(f"#### `FLeRM.{name}`")[1].split("####")[0] for name in ("record", "match")
    )
    for own, texts in ((record, record), (match, match + record)):
        signature = own.split("```")[1]
        names = [line.split(":")[0].strip() for line in signature.splitlines() if ": " in line]
        assert len(names) > 25
        assert [name for name in names if f"`{name}`" not in texts] == []
