"""Hands a run's events to the loggers that were asked for, and to no other: without one nothing is imported or sent."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from ..errors import AnimaError, SettingError
from ..run_history import held_out_of, sample_of
from ..settings import TrainConfig
from .tensorboard import TensorBoard
from .wandb import WeightsAndBiases
from .wanted import Logging, said

NUMBERS = ("loss", "mean_loss", "lr", "grad_norm", "seconds", "peak_gb")  # of a step's event

Event = dict[str, Any]


class Logger(Protocol):
    """One of this room's files makes one. name: for messages."""

    name: str

    def start(self, run: str, settings: Mapping[str, Any]) -> None:
        """Begin, or raise SettingError. run: its name. settings: empty where they are not to be logged."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: str, caption: str) -> None: ...

    def close(self, failed: bool) -> None: ...


@contextmanager
def listening(wanted: Logging, config: TrainConfig, say: Callable[[Event], None]) -> Iterator[Callable[[Event], None]]:
    """Yield a listener that hands a run's events to the loggers that were asked for. say: gets notes and warnings.

    Raises SettingError for a package that is not there, and in the listener where a logger cannot begin: both before a model is
    loaded. What fails later is one warning.
    """
    tellers = [Teller(logger, config, wanted.settings, say) for logger in loggers(wanted, say)]

    def listen(event: Event) -> None:
        for teller in tellers:
            teller.hear(event)

    failed = True
    try:
        yield listen
        failed = False
    finally:
        for teller in tellers:
            teller.close(failed)


def loggers(wanted: Logging, say: Callable[[Event], None]) -> list[Logger]:
    """Return the loggers that were asked for. Raises SettingError where the package of one is not there."""
    found: list[Logger] = []
    if wanted.tensorboard and has_tensorboard(wanted.tensorboard_required, say):
        found.append(TensorBoard(wanted.tensorboard))
    if wanted.wandb:
        if find_spec("wandb") is None:
            raise SettingError("log_with=wandb needs the package wandb: pip install wandb")
        found.append(WeightsAndBiases(wanted))
    return found


def has_tensorboard(required: bool, say: Callable[[Event], None]) -> bool:
    """Tell whether the package is there. Raises SettingError when it is not, and was asked for by name."""
    if find_spec("tensorboard"):
        return True
    if required:
        raise SettingError("log_with=tensorboard needs the package tensorboard: pip install tensorboard")
    text = "logging_dir: no TensorBoard files without the package tensorboard: pip install tensorboard"
    say({"event": "note", "text": text})
    return False


class Teller:
    """Hands events to one logger. When that fails it gets no more, which is said once: no run ends of it."""

    def __init__(self, logger: Logger, config: TrainConfig, with_settings: bool, say: Callable[[Event], None]) -> None:
        self._logger: Logger | None = logger
        self._config, self._with_settings, self._say = config, with_settings, say
        self._has_begun = False

    def hear(self, event: Event) -> None:
        if event["event"] == "start":
            self._has_begun = True
            self._try(lambda logger: logger.start(event["name"], settings_of(self._config) if self._with_settings else {}))
        elif self._has_begun:  # in the process that writes, where a run has begun
            self._try(lambda logger: pass_on(event, logger))

    def close(self, failed: bool) -> None:
        if self._has_begun:
            self._try(lambda logger: logger.close(failed))

    def _try(self, act: Callable[[Logger], None]) -> None:
        if self._logger is None:
            return
        try:
            act(self._logger)
        except AnimaError:
            self._logger = None
            raise
        except Exception as error:
            text = f"{self._logger.name}: {said(error)}; it gets no more of this run, log.jsonl has all"
            self._logger = None
            self._say({"event": "warning", "text": text})


def pass_on(event: Event, logger: Logger) -> None:
    if event["event"] in ("step", "held_out"):
        logger.numbers(event["step"], {name: value for name, value in scalars(event).items() if value is not None})
    elif event["event"] == "sample" and (sample := sample_of(event)) is not None:
        logger.picture(sample.step, f"samples/{sample.index}", event["path"], sample.prompt)


def scalars(event: Event) -> dict[str, float | None]:
    """Return the numbers of a step's event, or of a held-out one, by the names that loggers show."""
    if event["event"] == "step":
        return {name: event.get(name) for name in NUMBERS}
    found = held_out_of(event)
    if found is None:
        return {}
    means = {"held_out/loss": found.loss, "held_out/ema": found.ema, "held_out/base": found.base}
    return means | {f"held_out_levels/t={t or 0:.2f}": level for t, level in zip(found.t, found.levels)}


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Return a run's settings by section; of paths only the last part."""
    from ..adapters.metadata import file_name
    from ..settings import to_dict

    return to_dict(config, path=file_name)
