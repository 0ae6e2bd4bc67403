"""What pages load: style, script, icon, and plotly.js out of the installed plotly package. Nothing comes from outside."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import threading
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(slots=True)
class Asset:
    """One file, named by its content: a page that names this version may keep it for ever. Kept gzipped once asked for."""

    file: Path
    version: str
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _packed: bytes | None = None

    @classmethod
    def of(cls, file: Path) -> Asset:
        """Reads it once, for its version."""
        return cls(file, hashlib.sha256(file.read_bytes()).hexdigest()[:16])

    def packed(self) -> bytes:
        """The content, gzipped."""
        with self._lock:
            if self._packed is None:
                self._packed = gzip.compress(self.file.read_bytes(), 6, mtime=0)
            return self._packed


class Assets:
    """All files of the pages by name, and the address under which a page names each."""

    def __init__(self) -> None:
        files = [*STATIC.iterdir(), _plotly()]
        self._by_name = {file.name: Asset.of(file) for file in files}

    def url(self, name: str) -> str:
        """The address of this version of the file."""
        return f"/static/{name}?v={self._by_name[name].version}"

    def router(self) -> APIRouter:
        """Serves them under /static."""
        api = APIRouter(include_in_schema=False)

        @api.get("/static/{name}")
        def static(request: Request, name: str, v: str = "") -> Response:
            asset = self._by_name.get(name)
            if asset is None:
                raise HTTPException(404, "no such file")
            headers = {
                "Cache-Control": FOR_EVER if v == asset.version else "no-cache",
                "ETag": f'W/"{asset.version}"',
                "Vary": "Accept-Encoding",
            }
            if headers["ETag"] in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=headers)
            media = _TYPES[asset.file.suffix]
            if "gzip" in request.headers.get("accept-encoding", ""):
                return Response(
                    asset.packed(),
                    media_type=media,
                    headers={**headers, "Content-Encoding": "gzip"},
                )
            return Response(asset.file.read_bytes(), media_type=media, headers=headers)

        return api


def _plotly() -> Path:
    # Found, not imported: the package's Python part is large and not needed here.
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("plotly is not installed: pip install 'flerm[server]'")
    return Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
