"""The one event stream of a run: every listener (progress bar, log file, ComfyUI panel) gets the same dicts.

An event is a flat dict with `event` and `time`. Kinds: start, progress (stage, done, total, …), step (step, loss, lr, …),
sample (step, path), checkpoint (step, path), saved (step, path), warning (text), note (text), finish. Texts name settings
as messages do, see `errors`. A listener may answer "stop" (end early, keep the adapter) or "cancel" (save the state, end as
interrupted); "save" or "preview" (save, or draw the previews, after this step, once).
"""

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import Interrupted

Event = dict[str, Any]
Listener = Callable[[Event], str | None]

COMMANDS = ("stop", "cancel")  # end a run
WISHES = ("save", "preview")  # are fulfilled between two steps, once


class Events:
    """Writes each event as one line of `log.jsonl`, hands it to the listener, and keeps the last command that was asked for.

    log: None before there is a run folder, and in all processes but the first.
    """

    def __init__(self, log: Path | None, listener: Listener | None = None) -> None:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(log or os.devnull, "ab", buffering=0)  # noqa: SIM115  # unbuffered: a kill leaves whole lines
        self._at_line_start = ends_with_newline(log)
        self._listener = listener
        self._command: str | None = None
        self._wishes: set[str] = set()
        self.rescuing = False  # a listener that fails must not keep the state from being saved

    def ask(self, command: str | None) -> None:
        """Ask the run for something, from a listener's answer or a signal; anything but a command or a wish is no request."""
        if command in COMMANDS:
            self._command = command
        elif command in WISHES:
            self._wishes.add(command)

    @property
    def command(self) -> str | None:
        """The last thing that was asked for: "stop", "cancel", or None."""
        return self._command

    def take_wishes(self) -> set[str]:
        """Return what was wished for since this was asked last. It is never told to other processes: only this one writes."""
        wishes, self._wishes = self._wishes, set()
        return wishes

    def emit(self, event: str, **data: Any) -> None:
        entry: Event = {"event": event, "time": time.time(), **data}
        self._write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        try:
            self.ask(self._listener(entry) if self._listener else None)
        except Exception:
            if not self.rescuing:
                raise

    def _write(self, line: str) -> None:
        """Append a line. A disk that is full or gone costs lines of the log, which is said once."""
        data = line.encode(errors="replace")  # half an emoji in a prompt cannot be encoded
        try:
            data = data if self._at_line_start else b"\n" + data
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._at_line_start = True
        except OSError as error:
            first, self._at_line_start = self._at_line_start, False
            if first and self._listener:
                text = f"log.jsonl: {error.strerror}; lines are lost"
                self._listener({"event": "warning", "time": time.time(), "text": text})

    def progress(self, stage: str, **more: int) -> Callable[[int, int], None]:
        """Return what reports the progress of work outside of the steps. more: further numbers of the event.

        Either command ends such work at once: before the first step there is nothing to keep.
        """

        def report(done: int, total: int) -> None:
            self.emit("progress", stage=stage, done=done, total=total, **more)
            if self.command is not None:
                word = "cancelled" if self.command == "cancel" else "stopped"
                raise Interrupted(f"{word} at {stage}, {done} of {total}, before the first step; the cache keeps what is done")

        return report

    def close(self) -> None:
        self._file.close()


def ends_with_newline(log: Path | None) -> bool:
    """Tell whether the next line can follow at once: a power cut may have left half a line."""
    if log is None or not log.stat().st_size:
        return True
    with open(log, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
