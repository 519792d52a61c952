"""What a run was asked to log beside `log.jsonl`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import printable

MOST_SAID = 300  # characters of another program's error


@dataclass(frozen=True)
class Logging:
    """What was asked for.

    tensorboard: the folder of its files, or empty. tensorboard_required: without the package the run is refused.
    wandb: whether W&B gets the run. folder: of what wandb writes. project, run_name: in W&B; an empty name is the adapter's.
    api_key: stands in no file and in no message. init: more of `wandb.init`. settings: whether loggers get the run's.
    """

    tensorboard: str = ""
    tensorboard_required: bool = False
    wandb: bool = False
    folder: str = ""
    project: str = ""
    run_name: str = ""
    api_key: str = field(default="", repr=False)
    init: Mapping[str, Any] = field(default_factory=dict)
    settings: bool = False


def said(error: BaseException) -> str:
    """Return what another program's error says, in one line."""
    return printable(" ".join(str(error).split())[:MOST_SAID]) or type(error).__name__
