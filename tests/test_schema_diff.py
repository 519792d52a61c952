"""What counts as a change that breaks saved graphs."""

import copy
import json
from pathlib import Path

import pytest

from .comfyui.schema_diff import broken, main

SNAPSHOT = Path(__file__).parent / "comfyui" / "schema.json"
OLD = {
    "A": {
        "inputs": {"model": "MODEL", "rank": "INT", "name": "STRING"},
        "required": ["model"],
        "outputs": {"lora": "LORA_MODEL"},
    },
    "B": {"inputs": {}, "required": [], "outputs": {"path": "STRING", "image": "IMAGE"}},
}


def changed(change) -> list[str]:
    new = copy.deepcopy(OLD)
    change(new)
    return list(broken(OLD, new))


def reordered(new):
    new["A"]["inputs"] = {"model": "MODEL", "name": "STRING", "rank": "INT"}


def inserted(new):
    new["A"]["inputs"] = {"model": "MODEL", "alpha": "FLOAT", "rank": "INT", "name": "STRING"}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda new: new.pop("B"), "B: the node is gone"),
        (lambda new: new["A"]["inputs"].pop("model"), "A: the input model is gone"),
        (lambda new: new["A"]["inputs"].update(rank="FLOAT"), "A: the input rank was INT and is FLOAT"),
        (lambda new: new["A"]["required"].append("rank"), "A: the input rank has become required"),
        (reordered, "A: the widgets begin with name, rank; they were rank, name: add new ones at the end"),
        (inserted, "A: the widgets begin with alpha, rank; they were rank, name: add new ones at the end"),
        (lambda new: new["B"]["outputs"].pop("image"), "B: the output image is gone"),
        (
            lambda new: new["B"].update(outputs={"image": "IMAGE", "path": "STRING"}),
            "B: output 0, path, was STRING and is IMAGE",
        ),
    ],
)
def test_what_breaks_a_graph_is_said(change, said):
    assert said in changed(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda new: new.update(C=new["B"]),
        lambda new: new["A"]["inputs"].update(more="INT"),
        lambda new: new["A"].update(inputs={"clip": "CLIP"} | new["A"]["inputs"]),  # a link is found by its name
        lambda new: new["B"]["outputs"].update(more="INT"),
        lambda new: new["A"].update(required=[]),
    ],
)
def test_what_graphs_survive_is_no_break(change):
    assert changed(change) == []


def test_the_command_compares_snapshots(tmp_path, capsys):
    snapshot = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert main(str(SNAPSHOT), str(SNAPSHOT)) == 0
    snapshot.pop("AnimaTrain")
    less = tmp_path / "less.json"
    less.write_text(json.dumps(snapshot), encoding="utf-8")
    assert main(str(SNAPSHOT), str(less)) == 1
    assert "AnimaTrain: the node is gone" in capsys.readouterr().out
