"""Templates, and how pages write learning rates, losses and times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import jinja2
from fastapi import Depends, Request
from fastapi.responses import HTMLResponse

from flerm_core.tuning.transfer_words import signed
from flerm_server.http.public_site import PublicSite
from flerm_server.http.web.assets import Assets
from flerm_server.http.web.glossary import meaning
from flerm_server.http.web.sparkline import sparkline
from flerm_server.version import version


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """The gRPC address of this registry, as the commands on its pages name it.

    The host is the one that the browser asked: the server does not know its own public name.
    """

    scheme: str = "grpc"
    port: int = 50051

    def url(self, request: Request) -> str:
        """grpc://host:port, or grpcs://host:port."""
        host = request.url.hostname or "localhost"
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


class Pages:
    """Renders the templates. Every value that is put into one is escaped."""

    def __init__(self, assets: Assets, site: PublicSite) -> None:
        self._site = site
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {
            "asset": assets.url,
            "version": version(),
            "with_query": with_query,
            "meaning": meaning,
            "sparkline": sparkline,
        }
        self._environment.filters |= {
            "number": number,
            "loss": loss,
            "loss_or_diverged": loss_or_diverged,
            "ratio": ratio,
            "octaves": octaves,
            "percent": percent,
            "setting": setting,
            "time": time,
            "path": path,
            "shape": shape,
        }

    def page(
        self, template: str, request: Request, *, status: int = 200, **content: Any
    ) -> HTMLResponse:
        """One page. content: the variables that the template reads."""
        text = self._environment.get_template(template).render(
            request=request, principal=getattr(request.state, "principal", None), **content
        )
        return HTMLResponse(self._site.links(text), status, headers={"Cache-Control": "no-store"})


async def _pages(request: Request) -> Any:
    return request.app.state.pages


async def _public_address(request: Request) -> Any:
    return request.app.state.public_address


PagesDep = Annotated[Pages, Depends(_pages)]
PublicAddressDep = Annotated[PublicAddress, Depends(_public_address)]


def number(value: float) -> str:
    """A learning rate, an FSLR or a multiplier to four digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.4g}"


def loss(value: float | None) -> str:
    """A loss; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def loss_or_diverged(value: float) -> str:
    """A loss; a word where training diverged."""
    return "diverged" if math.isinf(value) else loss(value)


def ratio(value: float) -> str:
    """A ratio to two digits after the point, or more where it is small; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def octaves(value: float) -> str:
    """A shift with its sign; a dash for NaN."""
    return "–" if math.isnan(value) else signed(value)


def percent(value: float) -> str:
    """A cost with its sign; a word where training diverges, a dash for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "diverged"
    return f"{100 * value:+.1f} %".replace("-", "−") if abs(value) >= 0.0005 else "0.0 %"


def setting(value: object) -> str:
    """A value of a configuration; a whole number without its point."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def time(value: datetime) -> str:
    """A time in UTC, to the minute."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def path(name: str) -> str:
    """A name, escaped as a part of an address. The slash of team/name is kept."""
    return quote(name, safe="/")


def shape(sizes: tuple[int, ...]) -> str:
    """A shape: 32 × 10; a word for a scalar."""
    return " × ".join(map(str, sizes)) or "scalar"


def with_query(request: Request, **changes: str | float | None) -> str:
    """The address of the present page with some of its query changed.

    changes: the new values; None or empty removes a parameter. A parameter that stands several
    times in the address stays as it is.
    """
    kept = [
        (key, value)
        for key, value in request.query_params.multi_items()
        if key not in changes and value != ""
    ]
    added = [(key, value) for key, value in changes.items() if value not in (None, "")]
    text = urlencode([*kept, *added])
    return f"?{text}" if text else request.url.path
