"""`run.json` in the folder of a run that a graph began: its id, the node, the graph, and how it ended last."""

import hashlib
import json
import math
import re
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .files import write_whole

FILE = "run.json"
ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class RunRecord:
    """A run as its graph sees it.

    node: id of the node that trained it last, `12:5` within a subgraph. workflow: the graph that began it, as the page has it.
    started: seconds since 1970. outcome, sentence: of its end; empty while it runs, and after a crash.
    """

    id: str
    node: str = ""
    workflow: dict[str, Any] | None = None
    started: float | None = None
    outcome: str = ""
    sentence: str = ""


def new_id() -> str:
    return secrets.token_hex(6)


def id_of_name(folder: Path) -> str:
    """Return the id of a run that has no record: the command line's, or one of an earlier version of this program."""
    return hashlib.sha256(folder.name.encode(errors="surrogateescape")).hexdigest()[:12]


def read_record(folder: Path) -> RunRecord:
    """Read the record of a run; what is missing or damaged in it is as of a run that has none."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    texts = {name: found[name] for name in ("node", "outcome", "sentence") if isinstance(found.get(name), str)}
    id_, workflow, started = found.get("id"), found.get("workflow"), found.get("started")
    return RunRecord(
        id_ if isinstance(id_, str) and ID.fullmatch(id_) else id_of_name(folder),
        workflow=workflow if isinstance(workflow, dict) else None,
        started=started if isinstance(started, float) and math.isfinite(started) else None,
        **texts,
    )


def write_record(folder: Path, record: RunRecord) -> None:
    """Write the record of a run. A graph that no JSON can hold is left out. Raises OSError."""
    try:
        text = json.dumps(asdict(record), allow_nan=False)
    except ValueError:
        text = json.dumps(asdict(replace(record, workflow=None)))
    write_whole(folder / FILE, text.encode(errors="replace"))
