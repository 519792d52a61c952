"""A real ComfyUI on the CPU, in a base directory of its own, with this pack linked into it; and a client for its API."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120


class ComfyUI:
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
            os.symlink(ROOT, link, target_is_directory=True)
        command = [str(python), str(checkout / "main.py"), "--cpu", "--port", str(self.port), "--base-directory", str(base)]
        command += ["--disable-api-nodes", "--database-url", f"sqlite:///{base}/comfy.db"]
        command += arguments
        self.log = open(base / "server.log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, cwd=base)
        self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at start:\n{self.text()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not start:\n{self.text()[-4000:]}")

    def text(self) -> str:
        return (self.base / "server.log").read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url(path), timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: dict) -> Any:
        request = urllib.request.Request(self.url(path), json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body = answer.read()
                return json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def queue(self, prompt: dict) -> str:
        answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client})
        assert "prompt_id" in answer, json.dumps(answer, indent=1)[:4000]
        return answer["prompt_id"]

    def result(self, prompt_id: str, seconds: float = 300) -> dict:
        """The history entry of a finished prompt."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.2)
        raise TimeoutError(f"{prompt_id} did not finish:\n{self.text()[-3000:]}")

    def run(self, prompt: dict, seconds: float = 300) -> dict:
        return self.result(self.queue(prompt), seconds)


def status(entry: dict) -> str:
    return entry["status"]["status_str"]


def error_of(entry: dict) -> str:
    """The message of the node that failed."""
    return next((m[1].get("exception_message", "") for m in entry["status"]["messages"] if m[0] == "execution_error"), "")


def was_interrupted(entry: dict) -> bool:
    return any(m[0] == "execution_interrupted" for m in entry["status"]["messages"])


def cached_nodes(entry: dict) -> list[str]:
    return next((m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached"), [])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
