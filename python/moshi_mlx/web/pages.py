"""The page's files, found once at the start: nothing else can be asked for, whatever the path says."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path

from aiohttp import web

from ..errors import InputError
from .paths import why_no_file

BUILT = Path(__file__).parent / "static"

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


class Pages:
    """Serves the files below a folder; hidden files and links that lead out of it are left out."""

    def __init__(self, folder: Path):
        root = Path(os.path.realpath(folder))
        if (reason := why_no_file(root / "index.html")) is not None:
            raise InputError(
                f"{folder} has no index.html to be read ({reason}); give a built page's folder with --static, "
                "or none with --static none."
            )
        self._files: dict[str, Path] = {}
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if why_no_file(path) is None and not hidden and path.resolve().is_relative_to(root):
                self._files[name] = path
        self._files[""] = root / "index.html"
        # The rules of this package's page; another may need WebAssembly, workers from blobs, or fonts from elsewhere.
        self._rules = {} if root == BUILT.resolve() else {"Content-Security-Policy": "frame-ancestors 'none'"}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for a file."""
        path = self._files.get(request.match_info["path"])
        if path is None:
            raise web.HTTPNotFound(text="There is no such page.\n")
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return web.FileResponse(path, headers={"Content-Type": kind, "Cache-Control": "no-cache", **self._rules})
