"""The folders of pictures to choose from, in a real ComfyUI: the routes, and the error that stands in for them."""

import io
import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from PIL import Image

from ..processes import HANGS
from .graphs import Graph
from .server import error_of


@pytest.fixture(scope="module")
def placed(base):
    """A folder of pictures with captions for some, one of numbered sets, one without a picture."""
    for place, names in {
        "folder 猫": ("a.png", "b.JPG", "c.webp"),
        "folder_of_sets/10_x": ("1.png",),
        "folder_of_sets/2_y": ("2.png", "3.png"),
    }.items():
        (base / "input" / place).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (640, 320), "red").save(base / "input" / place / name)
    (base / "input" / "folder 猫" / "a.txt").write_text("a cat", encoding="utf-8")
    (base / "input" / "folder_without").mkdir()
    (base / "secret").mkdir(exist_ok=True)
    Image.new("RGB", (32, 32)).save(base / "secret" / "x.png")
    return base


def fetch(server, **query: str) -> tuple[int, bytes]:
    try:
        path = f"/anima_trainer/folders/picture?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(server.url(path), timeout=HANGS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_folders_and_their_pictures(server, placed):
    found = {folder["name"]: folder for folder in server.get("/anima_trainer/folders")["folders"]}
    cats = found["folder 猫"]
    assert (cats["root"], cats["pictures"], cats["captions"]) == ("input", 3, 1)
    assert cats["shown"] == ["a.png", "b.JPG", "c.webp"]
    assert (found["folder_of_sets"]["pictures"], found["folder_of_sets"]["shown"]) == (
        3,
        ["10_x/1.png", "2_y/2.png", "2_y/3.png"],
    )
    assert found["folder_without"]["pictures"] == 0 and "folder_of_sets/10_x" not in found and "secret" not in found
    for folder in (cats, found["folder_of_sets"]):
        for file in folder["shown"]:
            status, data = fetch(server, folder=folder["name"], file=file, side="64")
            assert status == 200 and Image.open(io.BytesIO(data)).size == (64, 32)


@pytest.mark.parametrize(
    "query, status",
    [
        ({"folder": "folder 猫", "file": "../../secret/x.png"}, 404),
        ({"folder": "../secret", "file": "x.png"}, 404),
        ({"folder": "folder 猫", "file": "a.txt"}, 404),
        ({"folder": "folder 猫", "file": "none.png"}, 404),
        ({"folder": "folder 猫", "file": "a.png\0"}, 404),
        ({"folder": "", "file": "a.png"}, 404),
        ({"folder": "folder 猫", "file": "a.png", "side": "9999999999999"}, 400),
        ({"folder": "folder 猫", "file": "a.png", "side": "-1"}, 400),
        ({}, 404),
    ],
)
def test_what_is_no_picture_of_a_folder_is_refused_in_one_line(server, placed, query, status):
    found, body = fetch(server, **query)
    error = json.loads(body)["error"]
    assert found == status and error and "\n" not in error


def test_a_damaged_picture_is_one_line(server, placed):
    (placed / "input" / "folder 猫" / "d.png").write_bytes(b"no picture")
    status, body = fetch(server, folder="folder 猫", file="d.png")
    assert status == 404 and "cannot be read as a picture" in json.loads(body)["error"]
    (placed / "input" / "folder 猫" / "d.png").unlink()


@pytest.mark.parametrize("folder", ["", "nope", "folder_without"])
def test_the_error_of_a_missing_or_empty_folder_names_those_there_are(server, placed, folder):
    graph = Graph(server)
    graph.add("look", "AnimaDatasetInspect", dataset=[graph.add("data", "AnimaDatasetFolder", folder=folder), 0])
    text = error_of(server.run(graph.prompt))
    assert "folder 猫 (3 pictures)" in text and "folder_of_sets (3 pictures)" in text and "there are" in text, text


def test_inspect_draws_the_plan_of_the_buckets(server, placed):
    graph = Graph(server)
    graph.add("look", "AnimaDatasetInspect", dataset=[graph.add("data", "AnimaDatasetFolder", folder="folder 猫"), 0])
    for number, name in ((1, "sheet"), (2, "plan")):
        graph.add(name, "PreviewImage", images=["look", number])
    outputs = server.run(graph.prompt)["outputs"]
    for name in ("sheet", "plan"):
        (shown,) = outputs[name]["images"]
        path = f"/view?{urllib.parse.urlencode(shown)}"
        with urllib.request.urlopen(server.url(path), timeout=HANGS) as answer:
            picture = Image.open(io.BytesIO(answer.read()))
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 8 and min(picture.size) > 100
