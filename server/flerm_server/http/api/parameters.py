"""Query parameters that several routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query

from flerm_core.errors import InvalidInput

PageSize = Annotated[
    int, Query(ge=0, le=1000, description="Items of one page, at most 1000; 0: 100")
]
PageToken = Annotated[
    str, Query(description="`next_page_token` of the page before; empty: the first page")
]


async def _tags(
    tag: Annotated[
        list[str],
        Query(description="`key=value`; a recording must have every tag that is given"),
    ] = [],  # noqa: B006 - FastAPI copies it
) -> dict[str, str]:
    tags = {}
    for pair in tag:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidInput(f"tag {pair[:80]!r}: key=value is allowed")
        tags[key] = value
    return tags


Tags = Annotated[dict[str, str], Depends(_tags)]
