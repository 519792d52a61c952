"""HTTP routes: what trains and what was trained, and what a page may ask of it. `docs/routes.md` has them as a table."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web
from server import PromptServer

from ..anima_core.errors import FileError, RunError
from . import live
from .request_body import BadRequest, name_in, target_of, whole_number
from .run_pages import NoSuchRun, RunPages

ASKED = {"stop": "stopping", "save": "saving", "preview": "previewing", "cancel": "cancelling"}  # word -> that of the answer
POINTS = (1000, 10, 4000)  # of a curve: usual, least, most
SIDE = (256, 64, 1024)  # px of a small sample, likewise

Handler = Callable[[web.Request], Any]


def add_routes() -> None:
    server = PromptServer.instance
    if server is None:  # imported without a server, as some tools do
        return
    pages = RunPages()
    for path, answer in READ.items():
        server.routes.get(f"/anima_trainer/{path}")(answered(partial(answer, pages)))
    for word in ASKED:
        server.routes.post(f"/anima_trainer/{word}")(answered(partial(ask, word)))
    server.routes.post("/anima_trainer/runs/{id}/delete")(answered(partial(delete, pages)))


def answered(handler: Handler) -> Handler:
    """Let a handler's refusals be answered by {"error": one line}."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except BadRequest as error:
            return refusal(400, error)
        except NoSuchRun as error:
            return refusal(404, error)
        except RunError as error:
            return refusal(409, error)
        except FileError as error:
            return refusal(500, error)

    return answer


def refusal(status: int, error: object, **more: Any) -> web.Response:
    return web.json_response({"error": str(error)} | more, status=status)


async def in_thread(call: Callable[..., Any], *given: Any) -> Any:
    """Do what reads the disk beside the server's loop, which has every page's messages to pass on."""
    return await asyncio.get_running_loop().run_in_executor(None, call, *given)


async def ask(word: str, request: web.Request) -> web.Response:
    """Ask a training for something: {"node": "12:5"} or {"run": "<id>"}; `stop` also {}, every training.

    Answers with the ids of the nodes that were asked, 404 when nothing of that name trains.
    """
    target = target_of(await request.read(), all_of_none=word == "stop")
    asked = live.chosen(target.node, target.run)
    if not asked and any(target):
        return refusal(404, f"{target} is not training", **{ASKED[word]: []})
    if word == "preview" and not any(training.has_prompts for training in asked):
        return refusal(409, "this run has no prompts: connect Anima Sample Prompts before it begins")
    for training in asked:
        training.asked.add(word)
    return web.json_response({ASKED[word]: [training.node for training in asked]})


async def running(pages: RunPages, request: web.Request) -> web.Response:
    return web.json_response({"running": live.nodes(), "runs": await in_thread(pages.running)})


async def runs(pages: RunPages, request: web.Request) -> web.Response:
    return web.json_response({"runs": await in_thread(pages.runs)})


async def run(pages: RunPages, request: web.Request) -> web.Response:
    return web.json_response(await in_thread(pages.run, request.match_info["id"]))


async def curve(pages: RunPages, request: web.Request) -> web.Response:
    points = whole_number(request.query.get("points"), *POINTS, "points")
    return web.json_response(await in_thread(pages.curve, request.match_info["id"], points))


async def sample(pages: RunPages, request: web.Request) -> web.StreamResponse:
    """Answer with a sample as it is, or as a JPEG that is no larger than `side`."""
    named = request.match_info["id"], request.match_info["file"]
    if "side" not in request.query:
        return web.FileResponse(await in_thread(pages.sample, *named))
    side = whole_number(request.query["side"], *SIDE, "side")
    return web.Response(body=await in_thread(pages.small_sample, *named, side), content_type="image/jpeg")


async def graph(pages: RunPages, request: web.Request) -> web.Response:
    return web.json_response(await in_thread(pages.graph, request.match_info["id"]))


async def delete(pages: RunPages, request: web.Request) -> web.Response:
    """Delete a run, its folder and its records, whose name the body confirms; never its adapter."""
    name, id_ = name_in(await request.read()), request.match_info["id"]
    if live.chosen(None, id_):
        return refusal(409, f"{name[:80]}: is training now; stop it first")
    deleted = await in_thread(pages.delete, id_, name)
    if deleted is None:
        return refusal(400, f"{name[:80]!r} is not the name of this run; nothing is deleted")
    return web.json_response({"deleted": deleted})


READ: dict[str, Callable[[RunPages, web.Request], Any]] = {
    "running": running,
    "runs": runs,
    "runs/{id}": run,
    "runs/{id}/curve": curve,
    "runs/{id}/samples/{file}": sample,
    "runs/{id}/graph": graph,
}
