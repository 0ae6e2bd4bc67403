"""Templates, and how pages write rates, losses and moments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse

from flerm_server.http.web.assets import Assets
from flerm_server.version import version


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """Where jobs reach the registry, as commands on pages name it: on the host that the page was asked from."""

    scheme: str = "grpc"
    port: int = 50051

    def address(self, request: Request) -> str:
        """grpc://host:port, or grpcs://."""
        return f"{self.scheme}://{request.url.hostname}:{self.port}"


class Pages:
    """The templates with what all of them use. Everything that is put into one is escaped."""

    def __init__(self, assets: Assets) -> None:
        loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
        self._environment = jinja2.Environment(
            loader=loader,
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {
            "asset": assets.url,
            "version": version(),
            "with_query": with_query,
        }
        self._environment.filters |= {
            "rate": rate,
            "loss": loss,
            "moment": moment,
            "path": path,
            "shape": shape,
        }

    def page(
        self, template: str, request: Request, *, status: int = 200, **content: Any
    ) -> HTMLResponse:
        """One page."""
        asker = getattr(request.state, "identity", None)
        text = self._environment.get_template(template).render(
            request=request, asker=asker, **content
        )
        return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})


def rate(value: float) -> str:
    """A learning rate or FSLR as people read it; a dash for none."""
    return "–" if math.isnan(value) else f"{value:.4g}"


def loss(value: float | None) -> str:
    """A loss; a dash for none."""
    return (
        "–"
        if value is None or not math.isfinite(value)
        else f"{value:.4f}"
        if 1e-3 <= abs(value) < 1e5
        else f"{value:.3g}"
    )


def moment(value: datetime) -> str:
    """A moment in UTC, to the minute."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def path(name: str) -> str:
    """A name as a part of an address; the slash of team/name stays."""
    return quote(name, safe="/")


def shape(sizes: tuple[int, ...]) -> str:
    """A shape: 32 × 10; a word for a scalar."""
    return " × ".join(map(str, sizes)) or "scalar"


def with_query(request: Request, **changes: str | float | None) -> str:
    """The address of the present page with some of its query changed; None takes a part out."""
    kept: Mapping[str, Any] = dict(request.query_params) | changes
    query = urlencode({key: value for key, value in kept.items() if value not in (None, "")})
    return f"?{query}" if query else request.url.path
