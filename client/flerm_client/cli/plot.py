"""`flerm plot`: the pages' figures as a file."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from flerm_client.cli.common import Registry, client, say
from flerm_core.errors import Ambiguous, InvalidInput, NotFound, Unsupported
from flerm_core.figures import Figure, curves_of, fslr_figure, loss_figure
from flerm_core.records.queries import BestQuery
from flerm_core.tuning.best_lr import best_of

FORMATS = (".html", ".png", ".svg", ".json")
_PAPER = "#ffffff"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def plot(
    what: Annotated[str, typer.Argument(help="a recording's id, or a family's name")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="what to write: .html, .png, .svg or .json (plotly's own format)"
        ),
    ],
    pattern: Annotated[
        str, typer.Option(help="of a recording: tensors to draw one by one, shell style")
    ] = "",
    width: Annotated[int, typer.Option(help="of a picture, in pixels", min=200, max=4000)] = 960,
    height: Annotated[int, typer.Option(help="of a picture, in pixels", min=150, max=4000)] = 540,
    registry: Registry = None,
) -> None:
    """Draws a recording's FSLRs over its steps, or a family's losses against learning rate. Needs `pip install 'flerm[plot]'`.

    Example: flerm plot team/decoder --out losses.svg
    """
    if out.suffix not in FORMATS:
        raise InvalidInput(
            f"--out: {str(out)!r} has an unknown ending; allowed are {', '.join(FORMATS)}"
        )
    content = render(_figure(what, pattern, registry), out.suffix, width, height)
    try:
        out.write_bytes(content)
    except OSError as error:
        raise InvalidInput(f"--out: {out} cannot be written ({error.strerror})") from error
    say(f"{out}: {len(content)} bytes")


def _figure(what: str, pattern: str, registry: str | None) -> Figure:
    with client(registry) as connected:
        if _is_id(what):
            trajectory = connected.trajectory(what)
            return fslr_figure(trajectory, trajectory.select(pattern).names if pattern else ())
        if pattern:
            raise InvalidInput(
                f"--pattern: {pattern!r} chooses tensors of a recording, and {what!r} is a family"
            )
        recordings = list(connected.recordings(what))
        if not recordings:
            raise NotFound(
                f"family {what!r} has no recordings in this registry; `flerm families` lists those that have"
            )
        try:
            best = best_of(recordings, BestQuery(family=what))
        except (NotFound, Ambiguous):
            best = None
        return loss_figure(curves_of(recordings), best)


def _is_id(what: str) -> bool:
    try:
        return str(uuid.UUID(what)) == what
    except ValueError:
        return False


def render(figure: Figure, suffix: str, width: int, height: int) -> bytes:
    """`figure` as a file's content, by its ending, one of `FORMATS`. Raises `Unsupported` naming what is not installed."""
    try:
        import plotly.io
    except ImportError as error:
        raise Unsupported(
            "plotly is not installed, which draws figures: pip install 'flerm[plot]'"
        ) from error
    if suffix == ".json":
        text: str = plotly.io.to_json(figure, validate=False, engine="json")
        return text.encode()
    figure = _on_paper(figure)
    if suffix == ".html":
        # All of plotly.js goes into the file: it opens without a network.
        page: str = plotly.io.to_html(
            figure,
            include_plotlyjs=True,
            validate=False,
            config={"responsive": True, "displaylogo": False},
        )
        return page.encode()
    return _picture(figure, suffix.removeprefix("."), width, height)


def _on_paper(figure: Figure) -> Figure:
    return {
        **figure,
        "layout": {**figure["layout"], "paper_bgcolor": _PAPER, "plot_bgcolor": _PAPER},
    }


def _picture(figure: Figure, kind: str, width: int, height: int) -> bytes:
    """By kaleido, which draws in a Chrome or Chromium that is installed."""
    browser = os.environ.get("BROWSER_PATH") or next(
        filter(None, map(shutil.which, _BROWSERS)), None
    )
    if browser is None:
        raise Unsupported(
            f"--out: .{kind} is drawn by Chrome or Chromium, and neither is installed; install one, or write .html instead"
        )
    os.environ["BROWSER_PATH"] = browser  # where kaleido looks
    try:
        import kaleido
    except ImportError as error:
        raise Unsupported(
            "kaleido is not installed, which draws pictures: pip install 'flerm[plot]'"
        ) from error
    options: dict[str, Any] = {
        "format": kind,
        "width": width,
        "height": height,
        "scale": 2 if kind == "png" else 1,
    }
    drawn: bytes = kaleido.calc_fig_sync(figure, opts=options)
    return drawn
