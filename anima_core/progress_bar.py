"""A run's events in the terminal."""

import re
import sys
from collections.abc import Mapping
from typing import Any

from .errors import in_words

NUMBER = re.compile(r"\d[\d.,e+-]*")


def progress_text(event: dict[str, Any]) -> str:
    """Write a progress event as people do: latents 3 / 10, or preview 1 of 3, step 12 / 30."""
    stage = stage_of(event) + (", step" if "picture" in event else "")
    return f"{stage} {event['done']} / {event['total']}"


def stage_of(event: dict[str, Any]) -> str:
    picture = f" {event['picture']} of {event['pictures']}" if "picture" in event else ""
    return event["stage"] + picture


def clock(seconds: float) -> str:
    """Write a time as people do: 45 s, 3 min 20 s, 2 h 05 min."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


class ProgressBar:
    """Shows the event stream: one bar for each stage; loss, learning rate, s/step, ETA and memory on the last.

    words: what its user calls the settings that texts name, see `errors`.
    """

    def __init__(self, words: Mapping[str, str] | None = None) -> None:
        self._words = words
        self._bar: Any = None
        self._stage = self._held_out = ""

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def on_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self._advance(stage_of(event), event["done"], event["total"], unit="it")
        elif kind == "step":
            self._step(event)
        elif kind in ("note", "warning"):
            text = in_words(event["text"], self._words)
            self._line(f"warning: {text}" if kind == "warning" else text)
        elif kind == "held_out":
            self._tell_held_out(event)
        elif kind in ("sample", "checkpoint", "saved"):
            self._line(f"{kind} at step {event['step']}: {event['path']}")

    def _step(self, event: dict[str, Any]) -> None:
        self._advance("training", event["step"], event["total"], unit="step")
        loss = event["mean_loss"]
        shown = {"loss": "nan" if loss is None else f"{loss:.4f}", "lr": f"{event['lr']:.2e}"}
        if event["peak_gb"]:
            shown["memory"] = f"{event['peak_gb']:.1f}GB"
        self._bar.set_postfix(shown, refresh=False)

    def _tell_held_out(self, event: dict[str, Any]) -> None:
        """Write its sentence where that is another one than before, not only one of other numbers."""
        former, self._held_out = self._held_out, NUMBER.sub("", event["text"])
        if self._held_out != former:
            self._line(f"step {event['step']}: {event['text']}")

    def _advance(self, stage: str, done: int, total: int, unit: str) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage = stage
            initial = done - 1 if unit == "step" else 0
            self._bar = tqdm(total=total, desc=stage, unit=unit, initial=initial, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def _line(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""
