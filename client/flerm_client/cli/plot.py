"""`flerm plot`: writes a figure of the web pages to a file."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from flerm_client.cli.common import Registry, client, say
from flerm_core.errors import InvalidInput, NotFound, Unsupported
from flerm_core.figures import Figure, fslr_figure, transfer_figure
from flerm_core.tuning.experiment_settings import ExperimentRun
from flerm_core.tuning.transfer_report import transfer_report

FORMATS = (".html", ".png", ".svg", ".json")
_WHITE = "#ffffff"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def plot(
    what: Annotated[str, typer.Argument(help="id of a recording, or name of a family")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="file to write: .html, .png, .svg or .json (plotly's format)"
        ),
    ],
    pattern: Annotated[
        str,
        typer.Option(
            help="for a recording: shell-style pattern of the parameters to draw one by one"
        ),
    ] = "",
    width: Annotated[
        int, typer.Option(help="width of a picture in pixels", min=200, max=4000)
    ] = 960,
    height: Annotated[
        int, typer.Option(help="height of a picture in pixels", min=150, max=4000)
    ] = 540,
    registry: Registry = None,
) -> None:
    """Draw a recording's FSLRs over its steps, or a family's losses over the learning rate. Needs
    `pip install 'flerm[plot]'`.

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
                f"family {what!r} has no recordings in this registry; "
                "`flerm families` lists those that have"
            )
        return transfer_figure(transfer_report(what, map(ExperimentRun.of, recordings)).panels())


def _is_id(what: str) -> bool:
    try:
        return str(uuid.UUID(what)) == what
    except ValueError:
        return False


def render(figure: Figure, suffix: str, width: int, height: int) -> bytes:
    """The bytes of a file that shows `figure`.

    Raises `Unsupported` where a program or package is not installed; the message names it.

    figure: the figure, in plotly's format.
    suffix: the file's format, one of `FORMATS`.
    width, height: the size of a picture (.png, .svg) in pixels.
    """
    try:
        import plotly.io
    except ImportError as error:
        raise Unsupported("a figure needs the package plotly: pip install 'flerm[plot]'") from error
    if suffix == ".json":
        text: str = plotly.io.to_json(figure, validate=False, engine="json")
        return text.encode()
    figure = _on_white(figure)
    if suffix == ".html":
        # The file contains plotly.js, so that it opens without a network.
        page: str = plotly.io.to_html(
            figure,
            include_plotlyjs=True,
            validate=False,
            config={"responsive": True, "displaylogo": False},
        )
        return page.encode()
    return _picture(figure, suffix.removeprefix("."), width, height)


def _on_white(figure: Figure) -> Figure:
    return {
        **figure,
        "layout": {**figure["layout"], "paper_bgcolor": _WHITE, "plot_bgcolor": _WHITE},
    }


def _picture(figure: Figure, kind: str, width: int, height: int) -> bytes:
    """The figure as PNG or SVG, which kaleido draws by an installed Chrome or Chromium."""
    browser = os.environ.get("BROWSER_PATH") or next(
        filter(None, map(shutil.which, _BROWSERS)), None
    )
    if browser is None:
        raise Unsupported(
            f"--out: .{kind} is drawn by Chrome or Chromium, and neither is installed; "
            "install one, or write .html instead"
        )
    os.environ["BROWSER_PATH"] = browser  # kaleido reads it
    try:
        import kaleido
    except ImportError as error:
        raise Unsupported(
            "a picture needs the package kaleido: pip install 'flerm[plot]'"
        ) from error
    options: dict[str, Any] = {
        "format": kind,
        "width": width,
        "height": height,
        "scale": 2 if kind == "png" else 1,
    }
    drawn: bytes = kaleido.calc_fig_sync(figure, opts=options)
    return drawn
