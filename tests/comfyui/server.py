"""A real ComfyUI on the CPU, in a base directory of its own, with this pack linked into it; and a client for its API."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..processes import HANGS, started, wait_until

ROOT = Path(__file__).resolve().parents[2]


class ComfyUI:
    """Runs until its block is left; then, and when it does not start, nothing of it stays behind."""

    def __init__(
        self, checkout: Path, python: Path, base: Path, *arguments: str, folder: str = "ComfyUI-Anima-Trainer"
    ) -> None:
        self.base = base
        self.port = free_port()
        self.client = uuid.uuid4().hex
        for name in (
            "custom_nodes",
            "models/diffusion_models",
            "models/vae",
            "models/text_encoders",
            "models/loras",
            "input",
        ):
            (base / name).mkdir(parents=True, exist_ok=True)
        link = base / "custom_nodes" / folder
        if not link.exists():
            link_folder(ROOT, link)
        command = [str(python), str(checkout / "main.py"), "--cpu", "--port", str(self.port), "--base-directory", str(base)]
        command += ["--disable-api-nodes", "--database-url", f"sqlite:///{base}/comfy.db"]
        command += arguments
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(base / "server.log", "wb"))
            self.process = stack.enter_context(started(command, stdout=log, stderr=subprocess.STDOUT, cwd=base))
            self.wait_until(self.answers, every=0.3)
            self.stack = stack.pop_all()
        self.start_seconds = time.monotonic() - began

    def __enter__(self) -> "ComfyUI":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask the server to end; what is left of it then is killed, also when it does not end."""
        with self.stack:
            self.process.terminate()
            self.process.wait(HANGS / 4)

    def wait_until(self, condition: Callable[[], Any], every: float = 0.02) -> None:
        """Wait until something is so, as long as the server runs."""
        try:
            wait_until(condition, self.process, every)
        except (AssertionError, OSError) as error:  # OSError: no answer any more
            raise AssertionError(f"ComfyUI: {error}\n{self.text()[-4000:]}") from None

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.get("/system_stats"))
        return False

    def text(self) -> str:
        return (self.base / "server.log").read_text(encoding="utf-8", errors="replace")

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url(path), timeout=HANGS) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: dict) -> Any:
        request = urllib.request.Request(self.url(path), json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=HANGS) as answer:
                body = answer.read()
                return json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def queue(self, prompt: dict) -> str:
        answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client})
        assert "prompt_id" in answer, json.dumps(answer, indent=1)[:4000]
        return answer["prompt_id"]

    def result(self, prompt_id: str) -> dict:
        """The history entry of a prompt, once it has finished."""
        path = f"/history/{prompt_id}"
        self.wait_until(lambda: prompt_id in self.get(path), every=0.2)
        return self.get(path)[prompt_id]

    def run(self, prompt: dict) -> dict:
        return self.result(self.queue(prompt))


def status(entry: dict) -> str:
    return entry["status"]["status_str"]


def error_of(entry: dict) -> str:
    """The message of the node that failed."""
    return next((m[1].get("exception_message", "") for m in entry["status"]["messages"] if m[0] == "execution_error"), "")


def failed_node(entry: dict) -> str:
    return next((m[1]["node_id"] for m in entry["status"]["messages"] if m[0] == "execution_error"), "")


def sentence(entry: dict, node: str = "train") -> str:
    """What the node ended with, which also stands on it."""
    assert status(entry) == "success", error_of(entry)
    return entry["outputs"][node]["text"][0]


def was_interrupted(entry: dict) -> bool:
    return any(m[0] == "execution_interrupted" for m in entry["status"]["messages"])


def cached_nodes(entry: dict) -> list[str]:
    return next((m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached"), [])


def link_folder(folder: Path, link: Path) -> None:
    """Make a link; on Windows, where only administrators may, a junction."""
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(folder), str(link))
    else:
        os.symlink(folder, link, target_is_directory=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
