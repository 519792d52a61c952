"""Reading the body of a stop request: strangers may send anything."""

import json
import re

NODE_ID = re.compile(r"[\w:.\-]{1,64}", re.ASCII)  # 12, or 12:5 within a subgraph


class BadRequest(ValueError):
    """One line for the answer's body."""


def node_of(body: bytes) -> str | None:
    """Read the node id of {"node": "12"}, or None for {} and for no body: every training. Raises BadRequest."""
    if not body.strip():
        return None
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body must be JSON") from None
    if not isinstance(data, dict):
        raise BadRequest('the body must be an object: {"node": "<id>"}, or {} for every training')
    if unknown := [key for key in data if key != "node"]:
        raise BadRequest(f'unknown key {unknown[0][:40]!r}; write {{"node": "<id>"}}, or {{}} for every training')
    node = data.get("node")
    if node is None:
        return None
    if isinstance(node, bool) or not isinstance(node, str | int) or not NODE_ID.fullmatch(text := str(node)[:80]):
        raise BadRequest("node must be a node's id")
    return text
