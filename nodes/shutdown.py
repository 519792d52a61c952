"""Saving the state of a training when ComfyUI is ended, by Ctrl-C, or by SIGTERM as services and containers are.

Training runs in ComfyUI's worker thread, which dies with the process, wherever it is. So the process waits for it.
"""

import atexit
import os
import signal
import threading
import time

from . import bridge, live, tell

TIDY_UP = 5.0  # seconds that ComfyUI gets for what it does after a prompt


def save_before_the_end() -> None:
    """Install what waits for a training's checkpoint. Called once, when the pack is loaded."""
    owner = os.getpid()  # a forked child inherits all this, but not the training

    def save() -> None:
        if os.getpid() != owner or not bridge.end_all():
            return
        tell.note("saving the training before the end; Ctrl-C ends at once")
        while live.nodes():
            time.sleep(0.05)
        deadline = time.monotonic() + TIDY_UP
        while not bridge.threads_are_idle() and time.monotonic() < deadline:
            time.sleep(0.05)

    def save_and_end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # first: a second SIGTERM must kill
        save()
        os.kill(os.getpid(), number)

    atexit.register(save)  # Ctrl-C ends the main thread; this comes before Python gives up the others
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and os.name != "nt" and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, save_and_end)
