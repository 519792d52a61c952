"""A run's events in the terminal."""

import sys
from collections.abc import Mapping
from typing import Any

from .errors import in_words


class ProgressBar:
    """Shows the event stream: one bar for each stage; loss, learning rate, s/step, ETA and memory on the last.

    words: what its user calls the settings that texts name, see `errors`.
    """

    def __init__(self, words: Mapping[str, str] | None = None) -> None:
        self._words = words
        self._bar: Any = None
        self._stage = ""
        self._mean: float | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def on_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self._advance(event["stage"], event["done"], event["total"], unit="it")
        elif kind == "step":
            self._step(event)
        elif kind in ("note", "warning"):
            text = in_words(event["text"], self._words)
            self._line(f"warning: {text}" if kind == "warning" else text)
        elif kind in ("sample", "checkpoint", "saved"):
            self._line(f"{kind} at step {event['step']}: {event['path']}")

    def _step(self, event: dict[str, Any]) -> None:
        self._advance("training", event["step"], event["total"], unit="step")
        loss = event["loss"]
        if loss is not None:
            self._mean = loss if self._mean is None else 0.98 * self._mean + 0.02 * loss
        shown = {"loss": f"{self._mean:.4f}" if self._mean is not None else "nan", "lr": f"{event['lr']:.2e}"}
        if event["peak_gb"]:
            shown["memory"] = f"{event['peak_gb']:.1f}GB"
        self._bar.set_postfix(shown, refresh=False)

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
