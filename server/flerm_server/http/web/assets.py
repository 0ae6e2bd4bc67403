"""The files that pages load: style, scripts, icon, and plotly.js from the installed plotly package.

No page loads anything from another site.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

STATIC = Path(__file__).parent / "static"
FOREVER = "public, max-age=31536000, immutable"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

web = APIRouter(include_in_schema=False)


@dataclass(slots=True)
class Asset:
    """One file. `version` is a digest of its content, so a browser may keep a version forever.

    The content stays in memory, so that any number of readers share it.
    """

    file: Path
    version: str
    content: bytes
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _gzipped: bytes | None = None

    @classmethod
    def of(cls, file: Path) -> Asset:
        """The asset of `file`. Reads the file, because the version is computed from its content."""
        content = file.read_bytes()
        return cls(file, hashlib.sha256(content).hexdigest()[:16], content)

    def gzipped(self) -> bytes:
        """The content, gzipped at the first call and kept in memory."""
        with self._lock:
            if self._gzipped is None:
                self._gzipped = gzip.compress(self.content, 6, mtime=0)
            return self._gzipped


class Assets:
    """All files by name."""

    def __init__(self) -> None:
        files = [*STATIC.iterdir(), _plotly()]
        self._by_name = {file.name: Asset.of(file) for file in files}

    def get(self, name: str) -> Asset | None:
        """The file of that name; None: there is none."""
        return self._by_name.get(name)

    def url(self, name: str) -> str:
        """The address of this version of a file."""
        return f"/static/{name}?v={self._by_name[name].version}"


async def _assets(request: Request) -> Any:
    return request.app.state.assets


@web.get("/static/{name}")
def static(
    assets: Annotated[Assets, Depends(_assets)], request: Request, name: str, v: str = ""
) -> Response:
    """One file.

    v: the version that a page names.
    """
    asset = assets.get(name)
    if asset is None:
        raise HTTPException(404, "no such file")
    headers = {
        "Cache-Control": FOREVER if v == asset.version else "no-cache",
        "ETag": f'W/"{asset.version}"',
        "Vary": "Accept-Encoding",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    media_type = _TYPES[asset.file.suffix]
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.gzipped(), media_type=media_type, headers=headers)
    return Response(asset.content, media_type=media_type, headers=headers)


def _plotly() -> Path:
    # The package is found, not imported: only its script is needed, and its Python part is large.
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("plotly is not installed: pip install 'flerm[server]'")
    return Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
