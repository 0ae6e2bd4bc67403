"""Writes the wire contract into docs/grpc.md, so that the page can be read in the repository.

`make proto` runs it.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "grpc.md"
CONTRACT = ROOT / "proto" / "flerm_proto" / "v1" / "registry.proto"
BLOCK = re.compile(r"^```proto\n.*?^```$", re.DOTALL | re.MULTILINE)


def page() -> str:
    """The text of docs/grpc.md with the present contract."""
    block = f"```proto\n{CONTRACT.read_text().strip()}\n```"
    return BLOCK.sub(lambda _: block, PAGE.read_text(), count=1)


if __name__ == "__main__":
    PAGE.write_text(page())
