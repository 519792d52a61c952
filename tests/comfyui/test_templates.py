"""The templates: how they look, as measured in a real frontend, and that each of them trains."""

import itertools
import json
import re

import pytest
from PIL import Image

from .graphs import prompt_of
from .layout import COLOURS, ROOM, SIDE, measured, place
from .make_workflows import FOLDER, build, is_widget, specs
from .measure_workflows import RENDERERS, drawn, what_lacks
from .server import error_of, sentence, status
from .templates import templates

FILES = sorted(FOLDER.glob("*.json"))
NAMES = [path.stem for path in FILES]
READABLE = 8 / 14  # of the zoom: below it the classic renderer draws no text (8 px of the 14 that it is high)
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PLAIN = re.compile(r"[A-Za-z0-9 \-]{8,60}")
SAYS_SOURCE = {"en": "**Values from** ", "zh": "**参数来源** "}
SMALL = {  # what a template's nodes are set to here, so that it takes a second
    "AnimaLoader": {
        "transformer": "tiny.safetensors",
        "vae": "tiny.safetensors",
        "qwen": "tiny_qwen/",
        "tokenizer": "tiny_t5/",
    },
    "AnimaDatasetFolder": {"folder": "pics", "resolution": "64", "bucket_step": 16, "min_side": 64},
    "AnimaDatasetImages": {"resolution": "64", "bucket_step": 16, "min_side": 64},
    "AnimaSamplePrompts": {"width": 64, "height": 64, "steps": 1, "cfg": 1.0},
    "AnimaTrain": {"steps": 2, "batch_size": 1},
}


def flow(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def notes(graph: dict) -> list[str]:
    return [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]


def overlap(one: list[float], other: list[float]) -> bool:
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def test_each_template_has_its_files():
    assert NAMES == sorted(template.name for template in templates()) == sorted(measured()) and len(NAMES) == 8
    for path in FILES:
        assert PLAIN.fullmatch(path.stem), path.stem  # its title, and a file of every system
        with Image.open(path.with_suffix(".jpg")) as picture:
            assert picture.width == picture.height >= 400
        assert path.with_suffix(".jpg").stat().st_size < 100_000
    assert {path.suffix for path in FOLDER.iterdir()} == {".json", ".jpg"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("renderer", RENDERERS)
def test_nothing_lies_on_anything(name, renderer):
    """As measured in the frontend: no two nodes overlap, no link passes behind one, each group holds its own nodes only."""
    graph, seen = flow(name), measured()[name][renderer]
    for node in graph["nodes"]:
        x, y, width, height = seen["boxes"][str(node["id"])]
        assert (x, y + 30) == tuple(node["pos"]), "run python -m tests.comfyui.measure_workflows"
        assert width >= node["size"][0] and height >= node["size"][1] + 30 > 30
    check_places(graph, seen)


def check_places(graph: dict, seen: dict) -> None:
    for one, other in itertools.combinations(seen["boxes"].values(), 2):
        assert not overlap(one, other)
    assert seen["behind"] == []
    for one, other in itertools.combinations([group["bounding"] for group in graph["groups"]], 2):
        assert not overlap(one, other)
    framed = [node for node in graph["nodes"] if node["type"] != "MarkdownNote"]
    for node in framed:
        box = seen["boxes"][str(node["id"])]
        (around,) = [group["bounding"] for group in graph["groups"] if overlap(group["bounding"], box)]
        assert around[0] + SIDE <= box[0] and box[0] + box[2] <= around[0] + around[2]
        assert around[1] + 30 <= box[1] and box[1] + box[3] <= around[1] + around[3]  # below the group's title


@pytest.mark.long
def test_the_real_frontend_draws_them_so(server):
    """Where there is a browser: measured again, with this machine's fonts."""
    if lacks := what_lacks():
        pytest.skip(lacks)
    for name, found in drawn(server.url("/")).items():
        for renderer in RENDERERS:
            check_places(flow(name), found[renderer])
            assert found[renderer]["scale"] > READABLE


@pytest.mark.parametrize("name", NAMES)
def test_a_training_node_has_room_to_grow(name):
    """It shows pictures and a panel while it trains."""
    graph = flow(name)
    boxes = measured()[name]["vue"]["boxes"]
    for node in graph["nodes"]:
        if node["type"].startswith("AnimaTrain"):
            x, y, width, height = boxes[str(node["id"])]
            room = [x, y + height, width, ROOM]
            assert not any(overlap(room, box) for other, box in boxes.items() if other != str(node["id"]))
            assert not any(x < point["pos"][0] < x + width and point["pos"][1] > y for point in graph["extra"]["reroutes"])
            (group,) = [group["bounding"] for group in graph["groups"] if overlap(group["bounding"], room)]
            assert group[1] + group[3] >= room[1] + room[3]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_legible_as_it_opens(name):
    for renderer in RENDERERS:
        assert measured()[name][renderer]["scale"] > READABLE


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_numbered_and_coloured(name):
    groups = flow(name)["groups"]
    assert [group["title"].split()[0] for group in groups] == [str(number + 1) for number in range(len(groups))]
    assert len(groups) >= 2 and {group["color"] for group in groups} <= set(COLOURS.values())


@pytest.mark.parametrize("name", NAMES)
def test_notes_are_plain_and_in_both_languages(name):
    """Bold and lists: code words are hard to read on a note's ground."""
    (text,) = notes(flow(name))
    english, chinese = text.split("\n---\n")
    assert CHINESE.search(chinese) and not CHINESE.search(english)
    assert "`" not in text and "|" not in text and "/home/" not in text and ":\\" not in text
    for language, part in (("en", english), ("zh", chinese)):
        assert part.strip().startswith("## ") and "\n1. **" in part and "\n2. **" in part
        assert SAYS_SOURCE[language] in part


def test_workflows_are_listed_with_pictures(server):
    assert sorted(server.get("/workflow_templates")["ComfyUI-Anima-Trainer"]) == NAMES
    for name in NAMES:
        path = f"/api/workflow_templates/ComfyUI-Anima-Trainer/{name.replace(' ', '%20')}.json"
        assert server.get(path) == flow(name)


@pytest.mark.parametrize("template", templates(), ids=lambda template: template.name)
def test_workflows_are_what_the_descriptions_and_the_nodes_make(server, template):
    info = server.get("/object_info")
    place(template, measured()[template.name]["heights"])
    made = json.loads(json.dumps(build(template, info)))
    assert flow(template.name) == made, "run python -m tests.comfyui.measure_workflows"
    for node in made["nodes"]:
        if node["type"] != "MarkdownNote":
            schema = info[node["type"]]
            assert not schema.get("deprecated"), node["type"]
            free = {n for n in schema["input"].get("required", {}) if not is_widget(*kind_of(schema, n))}
            assert free <= {i["name"].split(".")[0] for i in node["inputs"] if i["link"]}, node["type"]


def kind_of(schema: dict, name: str) -> tuple:
    return next((kind, options) for found, kind, options in specs(schema) if found == name)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("From", "Train", "Try"))])
def test_it_trains(server, base, name):
    Image.new("RGB", (64, 64), "green").save(base / "input" / "example.png")  # ComfyUI brings one along
    prompt = prompt_of(flow(name), server.get("/object_info"))
    for node in prompt.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
    entry = server.run(prompt)
    trained = [number for number, node in prompt.items() if node["class_type"] == "AnimaTrain"]
    for number in trained:
        assert sentence(entry, number).startswith("done: models/loras/"), entry
    shown = [number for number, node in prompt.items() if node["class_type"] in ("PreviewImage", "LossGraphNode")]
    assert len(shown) == 2 and all(entry["outputs"][number]["images"] for number in shown)


def test_try_it_needs_nothing(server, base):
    """Only its length is changed here: the models and pictures are its own."""
    info = server.get("/object_info")
    name = next(name for name in NAMES if name.startswith("Try"))
    prompt = prompt_of(flow(name), info)
    train = next(number for number, node in prompt.items() if node["class_type"] == "AnimaTrain")
    prompt[train]["inputs"] |= {"steps": 2}
    entry = server.run(prompt)
    assert sentence(entry, train).startswith("done: models/loras/anima_demo.safetensors, 2 steps")
    drawn = next(number for number, node in prompt.items() if node["class_type"] == "PreviewImage")
    assert len(entry["outputs"][drawn]["images"]) == 4
    written = base / "output" / "anima_trainer" / "demo"
    assert len([*(written / "pictures").glob("*.png")]) == 36 and (written / "models" / "vae_tiny.safetensors").is_file()
    assert sentence(server.run(prompt), train).startswith("already trained")


def test_a_toml_of_an_earlier_run_trains(server):
    info = server.get("/object_info")
    name = next(name for name in NAMES if name.startswith("Try"))
    prompt = prompt_of(flow(name), info)
    train = next(number for number, node in prompt.items() if node["class_type"] == "AnimaTrain")
    prompt[train]["inputs"] |= {"steps": 2, "output_name": "my_style"}
    assert sentence(server.run(prompt), train).startswith("done")
    toml = prompt_of(flow(next(name for name in NAMES if name.startswith("From"))), info)
    entry = server.run(toml)
    assert status(entry) == "success", error_of(entry)
