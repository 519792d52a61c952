"""Ctrl-C, SIGTERM and a closed terminal ask a run to end; it does so between two steps, with its state saved.

A handler that raised could do so within an optimizer step, and half a step is no state to save.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from .events import Events

ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
SECOND_CTRL_C_AFTER = 2.0  # seconds: sooner, a launcher may only be passing on what the terminal has sent already
MESSAGE = b"\nanima: ending after this step, its state is saved; Ctrl-C once more ends at once and loses what is not saved\n"


@contextlib.contextmanager
def signals_cancel(events: Events) -> Iterator[None]:
    """Turn the first signal into a "cancel"; a Ctrl-C that comes later raises KeyboardInterrupt. Ignored signals stay ignored.

    Only the main thread may handle signals: within ComfyUI, where training has a thread of its own, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[float] = []

    def ask(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT and time.monotonic() - asked[0] > SECOND_CTRL_C_AFTER:
            raise KeyboardInterrupt  # only for Ctrl-C: services and launchers repeat SIGTERM while the state is being saved
        if not asked:
            with contextlib.suppress(OSError):  # no console
                os.write(2, MESSAGE)  # `print` might be interrupted by itself
        asked.append(time.monotonic())
        events.ask("cancel")

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    taken = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in taken:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
