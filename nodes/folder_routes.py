"""HTTP routes for whoever chooses a folder of pictures: which there are, and a small picture of each."""

import asyncio
from dataclasses import asdict

from aiohttp import web
from server import PromptServer

from ..anima_core.data.picture_files import small_jpeg
from ..anima_core.errors import AnimaError
from .folders import folders, picture_in

SIDES = range(16, 513)  # px
USUAL_SIDE = 96


def add_folder_routes() -> None:
    server = PromptServer.instance
    if server is None:  # imported without a server, as some tools do
        return

    @server.routes.get("/anima_trainer/folders")
    async def list_folders(request: web.Request) -> web.Response:
        """List the folders to choose from: {"folders": [{"name", "root", "pictures", "captions", "shown", "changed"}]}."""
        found = await asyncio.to_thread(folders)
        return web.json_response({"folders": [asdict(folder) for folder in found]})

    @server.routes.get("/anima_trainer/folders/picture")
    async def picture(request: web.Request) -> web.Response:
        """Return a small JPEG: ?folder=…&file=… as the list tells them, &side=96 for its longest side."""
        side = request.query.get("side", str(USUAL_SIDE))
        if not (side.isascii() and side.isdigit() and int(side[:9]) in SIDES):
            return web.json_response({"error": f"side={side[:20]!r}: from {SIDES[0]} to {SIDES[-1]}"}, status=400)
        try:
            folder, file = request.query.get("folder", ""), request.query.get("file", "")
            data = await asyncio.to_thread(lambda: small_jpeg(picture_in(folder, file), int(side)))
        except AnimaError as error:
            return web.json_response({"error": str(error)}, status=404)
        return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})
