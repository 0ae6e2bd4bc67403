"""Query parameters that several routes share, and the check of their names."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from flerm_core.errors import InvalidInput, join_names
from flerm_core.records.key_value_pairs import key_value_pairs

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
    return key_value_pairs("tag", tag)


Tags = Annotated[dict[str, str], Depends(_tags)]


async def check_parameters(request: Request) -> None:
    """Raises `InvalidInput` for a query parameter that the route does not have, and for one that is
    given twice where one value counts: the answer would be that of another question.

    The OpenAPI document says which there are.
    """
    if not request.query_params:
        return
    app, route = request.app, request.scope["route"]
    # Made at the first request, in a fifth of a second that must not hold up the event loop.
    document = app.openapi_schema or await run_in_threadpool(app.openapi)
    described = document["paths"][route.path_format][request.method.lower()]
    repeatable = {
        each["name"]: each["schema"].get("type") == "array"
        for each in described.get("parameters", ())
        if each["in"] == "query"
    }
    seen = set()
    for name, value in request.query_params.multi_items():
        if name not in repeatable:
            raise InvalidInput(
                f"{name[:80]!r}: {value[:80]!r} is given, but this route has no such parameter; "
                f"it has {join_names(repeatable)}"
            )
        if name in seen and not repeatable[name]:
            raise InvalidInput(f"{name}: {value[:80]!r} is a second value; give one")
        seen.add(name)
