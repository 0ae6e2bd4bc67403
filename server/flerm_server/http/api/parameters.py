"""Query parameters that several routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query

from flerm_server.http.key_value_pairs import key_value_pairs

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
    return key_value_pairs("tag", "key=value", tag)


Tags = Annotated[dict[str, str], Depends(_tags)]
