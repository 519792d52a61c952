"""What a run's folder tells for its report: its history, and what was said on the way."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..run_history import LOG, Log, config_of, count, finite, name_of, number
from ..run_record import read_record
from ..settings import TrainConfig

STATES = {  # by the reason of the end
    "finished": "finished",
    "stopped": "stopped and kept",
    "stopped early": "stopped early, since the held-out loss did not fall",
    "Interrupted": "cancelled",
}


@dataclass
class Story(Log):
    """A run's log with what only a report tells.

    config: None where `config.toml` cannot be read. told: how often each warning came. notes: each once, in order. data: what
    was said of the pictures when the run was started last. times: of the first and the last event, seconds since 1970.
    adapter: path of the file that was saved last. end: why the run ended; empty when it was cut off or is under way.
    sentence: that a run of a graph ended with.
    """

    config: TrainConfig | None = None
    told: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    times: tuple[float, float] = (0.0, 0.0)
    adapter: str = ""
    end: str = ""
    sentence: str = ""
    device: str = ""
    total: int = 0
    peak_gb: float = 0.0
    _since: list[str] = field(default_factory=list)  # notes since the last step or end

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def name(self) -> str:
        return name_of(self.folder)

    @property
    def state(self) -> str:
        """Say how the run ended."""
        return STATES.get(self.end, "failed" if self.end else "unfinished")

    def _take_start(self, event: Mapping[str, Any]) -> None:
        super()._take_start(event)
        self.data, self._since, self.end = self._since, [], ""
        self.device = f"{event.get('device', '')}, {event.get('dtype', '')}"
        self._pass(event)

    def _take_step(self, event: Mapping[str, Any]) -> None:
        super()._take_step(event)
        self.total, self.peak_gb = count(event.get("total")) or 0, max(self.peak_gb, number(event.get("peak_gb")))
        self._since = []
        self._pass(event)

    def _take_note(self, event: Mapping[str, Any]) -> None:
        text = str(event.get("text", ""))
        self.notes[text] = None
        self._since.append(text)

    def _take_warning(self, event: Mapping[str, Any]) -> None:
        super()._take_warning(event)
        self.told[str(event.get("text", ""))] += 1

    def _take_saved(self, event: Mapping[str, Any]) -> None:
        self.adapter = str(event.get("path", ""))

    def _take_finish(self, event: Mapping[str, Any]) -> None:
        self.end, self.adapter, self._since = str(event.get("reason", "")), str(event.get("path", "")), []
        self._pass(event)

    def _pass(self, event: Mapping[str, Any]) -> None:
        """Let time go on to that of an event."""
        now = finite(number(event.get("time"))) or 0.0
        self.times = (self.times[0] or now, now)


def read_story(folder: Path) -> Story:
    """Read a run's folder. Raises FileError where none is."""
    if not (folder / LOG).is_file():
        raise FileError(f"{folder}: no run folder, as it holds no {LOG}; name one that ends in -run")
    story = Story(folder / LOG, config=config_of(folder), sentence=read_record(folder).sentence)
    story.read()
    return story
