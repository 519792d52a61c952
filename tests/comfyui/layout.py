"""Where a template's nodes stand: columns of coloured groups, with every link in the free ground between them.

Heights come from tests/comfyui/measured.json, which `measure_workflows` writes in a real frontend, in both renderers.
"""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).with_name("measured.json")
TITLE = 30  # px of a node's title, above its position
SLOT = 20  # px from one socket to the next; the first is 14 below the position
HEAD, FOOT, SIDE = 44, 14, 12  # px from a group's edge to its nodes: its title above them, below, beside
BETWEEN_NODES, BETWEEN_GROUPS, BETWEEN_COLUMNS = 20, 30, 70  # px
LANE = 14  # px between links that run side by side
ROOM = 560  # px that a training node grows by: curves, samples, buttons, the latest picture
STEEP = 260  # px that a link may climb in one curve
UNKNOWN = 60  # px, of a node that was not measured yet: a node grows to what it needs, and never shrinks
COLOURS = {  # of groups, in the order of their numbers; readable as titles on dark and on light ground
    "pictures": "#2d7db3",
    "model": "#6f7b8f",
    "learning": "#a8700f",
    "drawing": "#b3507f",
    "training": "#25855a",
    "result": "#8a4fb3",
}


@dataclass
class Node:
    """A node of a template. height: at least so many px; links: input -> "node.output_index"."""

    name: str
    type: str
    values: dict[str, Any] = field(default_factory=dict)  # widgets that differ from their defaults
    links: dict[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    title: str = ""
    height: int = 0
    at: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)  # without the title


@dataclass
class Group:
    """Nodes below each other. kind: its colour; none for nodes without a frame."""

    title: str
    kind: str
    nodes: list[Node]
    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # x, y, width, height


def grows(group: Group) -> bool:
    return group.nodes[-1].type.startswith("AnimaTrain")


@dataclass
class Column:
    width: int
    groups: list[Group]
    x: int = 0

    def lanes(self) -> list[float]:
        """Return the heights at which links may cross: above the first group, between two, below the last.

        Not below a training node, which grows while it trains.
        """
        boxes = [group.box for group in self.groups]
        between = [(above[1] + above[3] + below[1]) / 2 for above, below in pairwise(boxes)]
        below = [] if grows(self.groups[-1]) else [boxes[-1][1] + boxes[-1][3] + BETWEEN_GROUPS / 2]
        return [boxes[0][1] - BETWEEN_GROUPS / 2, *between, *below]


@dataclass
class Template:
    name: str  # of its files, and its title in the browser
    columns: list[Column]

    def nodes(self) -> list[Node]:
        return [node for column in self.columns for group in column.groups for node in group.nodes]


def measured() -> dict[str, dict]:
    return json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}


def place(template: Template, heights: dict[str, list[int]]) -> None:
    """Give every node its place and size, every group its box. heights: px of each node by renderer, titles included."""
    x = 0
    for column in template.columns:
        column.x, y = x, 0
        for group in column.groups:
            top = y
            y += HEAD + TITLE if group.kind else TITLE
            for node in group.nodes:
                seen = [height - TITLE for height in heights.get(node.name, [UNKNOWN])]
                least = max(seen) if node.type == "MarkdownNote" else seen[0]  # other nodes are made larger by themselves
                node.at, node.size = (x, y), (column.width, max(node.height, least))
                y += max(*seen, node.height) + BETWEEN_NODES + TITLE
            bottom = y - BETWEEN_NODES - TITLE + (FOOT if group.kind else 0) + (ROOM if grows(group) else 0)
            group.box = (x - SIDE, top, column.width + 2 * SIDE, bottom - top)
            y = bottom + BETWEEN_GROUPS
        x += column.width + BETWEEN_COLUMNS


@dataclass(frozen=True)
class Link:
    """From an output of a node to a socket of another, by names and positions."""

    source: str
    output: int
    target: str
    slot: int


Trunk = tuple[str, int]  # a node's output; all links from it go the same way
Point = tuple[float, float]


def ways(template: Template, links: list[Link]) -> dict[Link, list[Point]]:
    """Return the points that each link passes: two for every column that it crosses."""
    nodes, columns = {node.name: node for node in template.nodes()}, template.columns
    column_of = {node.name: n for n, column in enumerate(columns) for group in column.groups for node in group.nodes}
    height = {(link.source, link.output): socket_height(nodes[link.source], link.output) for link in links}
    points: dict[Trunk, dict[int, list[Point]]] = {trunk: {} for trunk in height}
    for number, column in enumerate(columns):
        crossing = [link for link in links if column_of[link.source] < number < column_of[link.target]]
        for trunk, y in lanes_of(column, crossing, height, nodes).items():
            height[trunk] = y
            points[trunk][number] = [(column.x - SIDE - 10, y), (column.x + column.width + SIDE + 10, y)]
    found = {}
    for link in links:
        if column_of[link.source] == column_of[link.target]:
            found[link] = way_down(columns[column_of[link.source]], nodes[link.target])
            continue
        passed = [p for n, pair in points[link.source, link.output].items() if n < column_of[link.target] for p in pair]
        source, target = columns[column_of[link.source]], columns[column_of[link.target]]
        begin = (source.x + source.width + 2 * SIDE, socket_height(nodes[link.source], link.output))
        end = (target.x - 2 * SIDE, socket_height(nodes[link.target], link.slot))
        found[link] = with_corners(begin, passed, end)
    return found


def way_down(column: Column, target: Node) -> list[Point]:
    """Return the points of a link to a node further down in the same column: beside it, then above that node, from the left."""
    y = target.at[1] - TITLE - BETWEEN_NODES / 2
    return [(column.x + column.width + SIDE + 10, y), (column.x - SIDE - 10, y)]


def with_corners(begin: Point, passed: list[Point], end: Point) -> list[Point]:
    """Return the points with one more where a link climbs far: its curve would otherwise swing out behind a node."""
    if not passed:
        return []
    first = [begin] if abs(begin[1] - passed[0][1]) > STEEP else []
    last = [end] if abs(end[1] - passed[-1][1]) > STEEP else []
    return [*first, *passed, *last]


def lanes_of(column: Column, links: list[Link], height: dict[Trunk, float], nodes: dict[str, Node]) -> dict[Trunk, float]:
    """Return at which height the links' trunks cross a column: in its nearest lane, in the order in which they come."""
    chosen: dict[int, list[Trunk]] = {}
    lanes = column.lanes()
    for link in links:
        trunk, end = (link.source, link.output), socket_height(nodes[link.target], link.slot)
        if any(trunk in others for others in chosen.values()):
            continue
        near = [abs(y - height[trunk]) + abs(y - end) for y in lanes]
        chosen.setdefault(near.index(min(near)), []).append(trunk)
    found = {}
    for lane, trunks in chosen.items():
        inner = 0 < lane < len(column.groups)
        first = (1 - len(trunks)) / 2 if inner else 1 - len(trunks) if lane == 0 else 0  # away from the column's nodes
        for place, trunk in enumerate(sorted(trunks, key=lambda trunk: height[trunk])):
            found[trunk] = lanes[lane] + (first + place) * LANE
    return found


def socket_height(node: Node, slot: int) -> float:
    return node.at[1] + 14 + SLOT * slot
