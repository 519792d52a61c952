"""HTTP routes: what is training, what could be continued, and stop-and-keep: training ends early, the graph goes on."""

from aiohttp import web
from server import PromptServer

from . import bridge
from .stop_request import BadRequest, node_of
from .store import run_store


def add_routes() -> None:
    server = PromptServer.instance
    if server is None:  # imported without a server, as some tools do
        return

    @server.routes.post("/anima_trainer/stop")
    async def stop(request: web.Request) -> web.Response:
        """Stop and keep: body {"node": "<id>"}, or {} for every training in progress; answers {"stopping": [ids]}.

        A body that is anything else is answered by 400, a node that does not train by 404; both with {"error": line}.
        """
        try:
            node = node_of(await request.read())
        except BadRequest as error:
            return web.json_response({"error": str(error)}, status=400)
        stopping = bridge.request_stop(node)
        if node is not None and not stopping:
            return web.json_response({"error": f"node {node} is not training", "stopping": []}, status=404)
        return web.json_response({"stopping": stopping})

    @server.routes.get("/anima_trainer/running")
    async def running(request: web.Request) -> web.Response:
        return web.json_response({"running": bridge.running_nodes()})

    @server.routes.get("/anima_trainer/runs")
    async def unfinished_runs(request: web.Request) -> web.Response:
        """List what Continue Anima Run offers: {"runs": [{"name", "step", "total", "saved_at"}]}, the newest first."""
        shown = ("name", "step", "total", "saved_at")
        return web.json_response({"runs": [{k: getattr(run, k) for k in shown} for run in run_store().unfinished()]})
