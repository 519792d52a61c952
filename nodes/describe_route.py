"""The route that tells a page what a model's file is, before anything runs: for the loaders' dropdowns."""

import asyncio
import os
from pathlib import Path

from aiohttp import web
from server import PromptServer

from ..anima_core.models.described import described
from .model_names import names_of, path_of

MODELS = {"diffusion_models": "transformer", "vae": "vae", "text_encoders": "qwen"}  # a dropdown's kind -> the model's


def add_describe_route() -> None:
    server = PromptServer.instance
    if server is None:  # imported without a server, as some tools do
        return

    @server.routes.get("/anima_trainer/describe")
    async def describe(request: web.Request) -> web.Response:
        """Answer {"text": one line} for ?kind=diffusion_models&name=… as the dropdown calls it; 404 for what is not in it."""
        kind, name = request.query.get("kind", ""), request.query.get("name", "")
        text = await asyncio.to_thread(text_of, kind, name)
        if text is None:
            return web.json_response({"error": f"kind={kind[:40]!r}, name={name[:200]!r}: not in the list"}, status=404)
        return web.json_response({"text": text})


def text_of(kind: str, name: str) -> str | None:
    """Describe an entry of a dropdown, the folders of the server left out; None for what is none."""
    if kind not in MODELS or name not in names_of(kind):
        return None
    path = path_of(kind, name)
    if path is None:
        return None
    return described(MODELS[kind], path).replace(str(Path(path).parent) + os.sep, "")
