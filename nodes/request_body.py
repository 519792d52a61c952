"""Reading the bodies of requests: strangers may send anything."""

import json
import re
from typing import Any, NamedTuple

NODE_ID = re.compile(r"[\w:.\-]{1,64}", re.ASCII)  # 12, or 12:5 within a subgraph
RUN_ID = re.compile(r"[\w.\-]{1,80}")
LONGEST = 10_000  # bytes; the longest that means anything is a name


class BadRequest(ValueError):
    """One line for the answer's body."""


class Target(NamedTuple):
    """The training that is meant: by a node's id, a run's id, or both; all where neither is given."""

    node: str | None
    run: str | None

    def __str__(self) -> str:
        return " and ".join([f"run {self.run}"] * bool(self.run) + [f"node {self.node}"] * bool(self.node))


def target_of(body: bytes, all_of_none: bool) -> Target:
    """Read {"node": "12"} or {"run": "<id>"}. Raises BadRequest.

    all_of_none: {} and no body mean every training; else they are refused.
    """
    every = ", or {} for every training" if all_of_none else ""
    way_out = f'{{"run": "<id>"}} or {{"node": "<id>"}}{every}'
    data = object_of(body, ("node", "run"), way_out)
    node, run = data.get("node"), data.get("run")
    if None in data.values():  # an id that was looked for and not found: not every training is meant
        raise BadRequest(f"null is no id; say which training: {way_out}")
    if node is not None and (isinstance(node, bool) or not isinstance(node, str | int) or not is_id(NODE_ID, node)):
        raise BadRequest("node must be a node's id")
    if run is not None and not (isinstance(run, str) and is_id(RUN_ID, run)):
        raise BadRequest("run must be a run's id")
    if node is None and run is None and not all_of_none:
        raise BadRequest(f"say which training: {way_out}")
    return Target(None if node is None else str(node), run)


def name_in(body: bytes) -> str:
    """Read {"name": "<name>"}. Raises BadRequest."""
    way_out = '{"name": "<the run\'s name>"}'
    name = object_of(body, ("name",), way_out).get("name")
    if not isinstance(name, str):
        raise BadRequest(f"name the run that is to be deleted: {way_out}")
    return name


def object_of(body: bytes, keys: tuple[str, ...], way_out: str) -> dict[str, Any]:
    """Read a JSON object with no other keys; {} for no body. Raises BadRequest."""
    if not body.strip():
        return {}
    try:
        data = json.loads(body) if len(body) <= LONGEST else None
    except (ValueError, RecursionError):
        raise BadRequest("the body must be JSON") from None
    if not isinstance(data, dict):
        raise BadRequest(f"the body must be an object of at most {LONGEST} bytes: {way_out}")
    if unknown := [key for key in data if key not in keys]:
        raise BadRequest(f"unknown key {unknown[0][:40]!r}; write {way_out}")
    return data


def is_id(pattern: re.Pattern[str], value: str | int) -> bool:
    """Tell whether a value is an id. A number of millions of digits is none, and is not written out."""
    return not (isinstance(value, int) and abs(value) >= 10**18) and bool(pattern.fullmatch(str(value)))


def whole_number(text: str | None, default: int, low: int, high: int, name: str) -> int:
    """Read a number of an address. Raises BadRequest."""
    if text is None:
        return default
    if not (re.fullmatch(r"\d{1,6}", text, re.ASCII) and low <= int(text) <= high):
        raise BadRequest(f"{name}={text[:40]!r}: must be a whole number from {low} to {high}")
    return int(text)
