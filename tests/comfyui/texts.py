"""What a server tells pages: a client of its socket, run by ComfyUI's interpreter, which has the package for it."""

import asyncio
import contextlib
import json
import struct
import subprocess
import sys
from pathlib import Path

CONNECTED = "connected"
BINARY_TEXT = 3  # ComfyUI's event of `send_progress_text`
OURS = "anima_trainer."  # begins the type of our own messages


class Texts:
    """The texts on the nodes of a server, in their order, as long as its block lasts. python: ComfyUI's interpreter."""

    def __init__(self, server, python: Path, log: Path) -> None:
        from ..processes import started

        self.server, self.log = server, log
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(open(log, "wb"))
            url = f"ws://127.0.0.1:{server.port}/ws?clientId=texts"
            stack.enter_context(started([str(python), __file__, url], stdout=out, stderr=subprocess.STDOUT))
            server.wait_until(lambda: self.lines()[:1] == [CONNECTED])
            self.stack = stack.pop_all()

    def __enter__(self) -> "Texts":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    def lines(self) -> list:
        text = self.log.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def of(self, node: str) -> list:
        return [line[1] for line in self.lines()[1:] if line[0] == node]

    def messages(self, kind: str) -> list[dict]:
        """Return what our own messages of a kind, as `begin`, held."""
        return self.of(OURS + kind)

    def last(self, node: str, start: str) -> str:
        """Return the sentence that stands on a node, once it begins as expected."""
        self.server.wait_until(lambda: (self.of(node) or [""])[-1].startswith(start))
        return self.of(node)[-1]


async def listen(url: str) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        print(json.dumps(CONNECTED), flush=True)
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY and struct.unpack(">I", message.data[:4])[0] == BINARY_TEXT:
                (length,) = struct.unpack(">I", message.data[4:8])
                node, text = message.data[8 : 8 + length], message.data[8 + length :]
                print(json.dumps([node.decode(), text.decode()]), flush=True)
            elif message.type == aiohttp.WSMsgType.TEXT and (told := json.loads(message.data))["type"].startswith(OURS):
                print(json.dumps([told["type"], told["data"]]), flush=True)


if __name__ == "__main__":
    asyncio.run(listen(sys.argv[1]))
