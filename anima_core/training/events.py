"""The one event stream of a run: every listener (progress bar, log file, ComfyUI panel) gets the same dicts.

An event is a flat dict with `event` and `time`. Kinds: start, progress (stage, done, total), step (step, loss, lr, …),
sample (step, path), checkpoint (step, path), saved (step, path), warning (text), note (text), finish.
A listener may answer "stop" (end early, keep the adapter) or "cancel" (save the state, end as interrupted).
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import Interrupted

Event = dict[str, Any]
Listener = Callable[[Event], str | None]

COMMANDS = ("stop", "cancel")


class Events:
    """Writes each event as one line of `log.jsonl` and hands it to the listener, whose last command is kept in `command`.

    log: None before there is a run folder, and in all processes but the first.
    """

    def __init__(self, log: Path | None, listener: Listener | None = None) -> None:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(log or os.devnull, "a", encoding="utf-8", buffering=1)
        self._listener = listener
        self.command: str | None = None

    def emit(self, event: str, **data: Any) -> None:
        entry: Event = {"event": event, "time": time.time(), **data}
        self._file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        answer = self._listener(entry) if self._listener else None
        if answer in COMMANDS:
            self.command = answer

    def progress(self, stage: str) -> Callable[[int, int], None]:
        """For work before the first step: either command ends it at once, as there is no adapter yet to keep."""

        def report(done: int, total: int) -> None:
            self.emit("progress", stage=stage, done=done, total=total)
            if self.command is not None:
                word = "cancelled" if self.command == "cancel" else "stopped"
                raise Interrupted(f"{word} at {stage}, {done} of {total}, before the first step; the cache keeps what is done")

        return report

    def close(self) -> None:
        self._file.close()
