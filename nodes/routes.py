"""HTTP routes: stop-and-keep. Training ends early, the node returns what it has, the rest of the graph goes on."""

from aiohttp import web
from server import PromptServer

from . import bridge


def add_routes() -> None:
    server = PromptServer.instance
    if server is None:  # imported without a server, as some tools do
        return

    @server.routes.post("/anima_trainer/stop")
    async def stop(request: web.Request) -> web.Response:
        """Body {"node": "<id>"} or {} for every training in progress -> {"stopping": [ids]}."""
        data = await request.json() if request.can_read_body else {}
        node = data.get("node") if isinstance(data, dict) else None
        return web.json_response({"stopping": bridge.request_stop(str(node) if node is not None else None)})

    @server.routes.get("/anima_trainer/running")
    async def running(request: web.Request) -> web.Response:
        return web.json_response({"running": bridge.running_nodes()})
