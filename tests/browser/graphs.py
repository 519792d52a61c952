"""Graphs as the frontend keeps them, small ones for the tests of the pages."""

SIZE = (420, 1100)  # px: room for the panel


def node(id_: int, kind: str, pos: tuple[int, int] = (0, 0), size: tuple[int, int] = SIZE, **more: object) -> dict:
    plain = {"flags": {}, "order": id_, "mode": 0, "inputs": [], "outputs": [], "properties": {"Node name for S&R": kind}}
    return plain | {"id": id_, "type": kind, "pos": list(pos), "size": list(size)} | more


def graph(*nodes: dict, **more: object) -> dict:
    last = max(found["id"] for found in nodes)
    plain = {"last_node_id": last, "last_link_id": 0, "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4}
    return plain | {"id": "6d1f9c0e-5a0f-4c86-9d0c-7f1a0c0f2b11", "nodes": list(nodes)} | more


def trainer() -> dict:
    """A training node alone, number 1."""
    return graph(node(1, "AnimaTrain"))


def within_subgraph() -> dict:
    """A subgraph, node 12, with the training node, number 5, in it."""
    name = "0b4c3f6e-0f0e-4d6e-8f4b-1d2c3b4a5f60"
    inner = {
        "id": name, "version": 1, "revision": 0, "name": "Training", "config": {}, "groups": [], "links": [], "extra": {},
        "state": {"lastGroupId": 0, "lastNodeId": 5, "lastLinkId": 0, "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [-200, 0, 120, 60]}, "outputNode": {"id": -20, "bounding": [800, 0, 120, 60]},
        "inputs": [], "outputs": [], "widgets": [], "nodes": [node(5, "AnimaTrain")],
    }  # fmt: skip
    return graph(node(12, name, size=(300, 100)), definitions={"subgraphs": [inner]})
