"""A stage for the pages, without a ComfyUI: its real frontend, this pack's own routes and pages, and trainings by a script.

What ComfyUI would answer about nodes is recorded (`record.py`). The routes of this pack are those of `nodes/`, on run folders
that `script.py` writes as a training does.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import comfyui_frontend_package
import pytest
from aiohttp import WSMsgType, web

from ..comfyui.pack import import_nodes
from ..test_node_texts import Bar, Interrupt, stand_in
from .browser import PATIENCE
from .record import recorded

ROOT = Path(__file__).resolve().parents[2]
FRONTEND = Path(comfyui_frontend_package.__file__).parent / "static"
FOLDER = "ComfyUI-Anima-Trainer"
EMPTY: dict[str, Any] = {  # what the frontend asks for at its start
    "users": {"storage": "server", "migrated": True},
    "system_stats": {"system": {"comfyui_version": "0.29.0", "argv": []}, "devices": []},
    "queue": {"queue_running": [], "queue_pending": []},
    "history": {},
    "prompt": {"exec_info": {"queue_remaining": 0}},
    "features": {},
    "global_subgraphs": {},
    "experiment/models": [],
    "embeddings": [],
    "userdata": [],
    "node_replacements": {},
    "jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 0, "total": 0, "has_more": False}},
}


class Stage:
    """Serves until its block is left. prompts: what pages have queued. asked: what they posted to this pack, by route.

    settings: of the frontend, as its pages get them. is_silent: whether messages to pages are lost.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.settings: dict[str, Any] = {}
        self.prompts: list[dict] = []
        self.asked: list[tuple[str, dict]] = []
        self.is_silent = False
        self.sockets: set[web.WebSocketResponse] = set()
        self.loop = asyncio.new_event_loop()
        self.routes = web.RouteTableDef()  # what nodes/routes.py adds to
        self.port = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator["Stage"]:
        with importing(self) as module:
            module("routes").add_routes()
            module("folder_routes").add_folder_routes()
            self.module = module
            thread = threading.Thread(target=self.loop.run_forever, name="stage")
            thread.start()
            runner = self.wait(self.start())
            try:
                yield self
            finally:
                self.drop_connections()
                self.wait(runner.cleanup())
                self.loop.call_soon_threadsafe(self.loop.stop)
                thread.join()
                self.loop.close()

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def start(self) -> web.AppRunner:
        app = web.Application(middlewares=[self.noted], client_max_size=1 << 26)
        for route in self.routes:
            for prefix in ("", "/api"):
                app.router.add_route(route.method, prefix + route.path, route.handler)
        app.router.add_get("/ws", self.socket)
        app.router.add_get("/api/object_info", answering(recorded))
        app.router.add_get("/api/i18n", answering(translations))
        app.router.add_get("/api/settings", answering(lambda: self.settings))
        app.router.add_post("/api/settings", self.set_settings)
        app.router.add_post("/api/settings/{name}", self.set_setting)
        app.router.add_get("/api/extensions", answering(extensions))
        app.router.add_post("/api/prompt", self.queue)
        app.router.add_post("/api/upload/image", self.upload)
        app.router.add_get("/api/workflow_templates", answering(templates))
        app.router.add_static(f"/api/workflow_templates/{FOLDER}", ROOT / "example_workflows")
        for path, answer in EMPTY.items():
            app.router.add_get(f"/api/{path}", answering(lambda answer=answer: answer))
        app.router.add_get("/api/{rest:.*}", self.is_not_there)
        app.router.add_static(f"/extensions/{FOLDER}", ROOT / "web")
        app.router.add_get("/", lambda request: web.FileResponse(FRONTEND / "index.html"))
        app.router.add_static("/", FRONTEND)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return runner

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait for what a page does to the stage."""
        give_up = time.monotonic() + PATIENCE / 1000
        while not condition():
            assert time.monotonic() < give_up, "the page has not done it"
            time.sleep(0.02)

    # What this pack calls of ComfyUI's server, from threads.

    def send_sync(self, kind: str, payload: dict, sid: str | None = None) -> None:
        self.loop.call_soon_threadsafe(self.tell, kind, payload)

    def send_progress_text(self, text: str, node: str) -> None:
        """Nothing: the stock text on a node is ComfyUI's own matter."""

    def drop_connections(self) -> None:
        """Cut every page's socket, as a lost connection does."""
        self.wait(self.close_sockets())

    async def close_sockets(self) -> None:
        for socket in list(self.sockets):
            await socket.close()

    def tell(self, kind: str, payload: dict) -> None:
        for socket in () if self.is_silent else self.sockets:
            self.loop.create_task(told(socket, kind, payload))

    @web.middleware
    async def noted(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        """Note what pages ask of this pack."""
        if request.method == "POST" and "/anima_trainer/" in request.path:
            self.asked.append((request.path.partition("/anima_trainer/")[2], json.loads(await request.read() or b"{}")))
        answer = await handler(request)
        if request.path.startswith("/assets/"):  # their names hold a hash of what is in them
            answer.headers["Cache-Control"] = "max-age=3600"
        return answer

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await told(socket, "status", {"status": EMPTY["prompt"], "sid": request.query.get("clientId") or "stage"})
        self.sockets.add(socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.ERROR:
                    break
        finally:
            self.sockets.discard(socket)
        return socket

    async def set_settings(self, request: web.Request) -> web.Response:
        self.settings |= await request.json()
        return web.Response()

    async def set_setting(self, request: web.Request) -> web.Response:
        self.settings[request.match_info["name"]] = await request.json()
        return web.Response()

    async def queue(self, request: web.Request) -> web.Response:
        self.prompts.append(await request.json())
        return web.json_response({"prompt_id": f"prompt-{len(self.prompts)}", "number": len(self.prompts), "node_errors": {}})

    async def upload(self, request: web.Request) -> web.Response:
        """Do what ComfyUI's route does with a file for a sub-folder of input."""
        form = await request.post()
        file, subfolder = form["image"], str(form.get("subfolder", ""))
        folder = self.base / "input" / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(file.filename).name).write_bytes(file.file.read())
        return web.json_response({"name": file.filename, "subfolder": subfolder, "type": "input"})

    async def is_not_there(self, request: web.Request) -> web.Response:
        return web.json_response({"error": "not on this stage"}, status=404)


def answering(answer: Callable[[], Any]) -> Callable:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(answer())

    return handler


async def told(socket: web.WebSocketResponse, kind: str, payload: dict) -> None:
    with contextlib.suppress(ConnectionError):
        await socket.send_json({"type": kind, "data": payload})


def extensions() -> list[str]:
    """List every script of web/, as ComfyUI does, which loads them all."""
    return [f"/extensions/{FOLDER}/{path.relative_to(ROOT / 'web').as_posix()}" for path in (ROOT / "web").rglob("*.js")]


def templates() -> dict[str, list[str]]:
    return {FOLDER: sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))}


def translations() -> dict[str, Any]:
    """Read locales/ as ComfyUI does: main.json is the language's top, every other file a part of it."""
    languages: dict[str, Any] = {}
    for path in sorted((ROOT / "locales").rglob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        languages.setdefault(path.parent.name, {}).update(found if path.stem == "main" else {path.stem: found})
    return languages


@contextlib.contextmanager
def importing(stage: Stage) -> Iterator[Callable[[str], ModuleType]]:
    """Make the modules of nodes/ importable around a stage; yield the function from a name to a module."""
    with pytest.MonkeyPatch.context() as patch:
        module = import_nodes(stage.base, patch)
        stand_in(patch, "comfy_api.latest", io=MagicMock(Input=object, ComfyNode=object))
        flag = dict(processing_interrupted=lambda: False, InterruptProcessingException=Interrupt)
        stand_in(patch, "comfy.model_management", **flag)
        stand_in(patch, "comfy.utils", ProgressBar=Bar)
        stand_in(patch, "server", PromptServer=MagicMock(instance=stage))
        yield module
