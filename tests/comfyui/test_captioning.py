"""Captions from the graph in a real ComfyUI, where core nodes stand for a tagger: they say how large each picture is."""

import json
import re
import shutil

import pytest
from PIL import Image

from .graphs import Graph
from .server import cached_nodes, error_of, sentence, status

NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture
def folder(base):
    """Three pictures of different sizes, one with a caption."""
    path = base / "input" / "to_caption"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (64 + 16 * number, 64), (90 * number, 0, 0)).save(path / name)
    (path / "b.txt").write_text("mine", encoding="utf-8")
    return path


def captions(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


def tagging(server, **choice) -> Graph:
    """Pictures -> size of each -> "64 wide" -> written -> dataset -> its report."""
    write = {name: choice.pop(name) for name in ("existing", "write") if name in choice}
    graph = Graph(server)
    graph.add("pictures", "AnimaFolderPictures", folder="to_caption", **choice)
    graph.add("size", "GetImageSize", image=["pictures", 0])
    graph.prompt["say"] = {"class_type": "StringFormat", "inputs": {"values.a": ["size", 0], "f_string": "wide {a}"}}
    links = {"folder": ["pictures", 2], "names": ["pictures", 1], "captions": ["say", 0]}
    graph.add("write", "AnimaWriteCaptions", **links, **write)
    data = {"folder": ["write", 0], "metadata_file": ["write", 1]}
    graph.add("data", "AnimaDatasetFolder", **data, resolution="64", bucket_step=16, min_side=64)
    graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
    return graph


def shown(text: str, picture: str, caption: str) -> bool:
    """Tell whether a picture's caption stands below its name, with its tokens, as it is always trained."""
    return re.search(rf"^  {re.escape(picture)}\n    always, \d+ tokens: {re.escape(caption)}$", text, re.MULTILINE) is not None


def test_pictures_without_a_caption_get_one_and_are_tagged_only_once(server, folder):
    graph = tagging(server)
    entry = server.run(graph.prompt)
    assert sentence(entry, "write") == "captions: 2 written"
    assert captions(folder) == {"a.txt": "wide 64", "b.txt": "mine", "c.txt": "wide 96"}
    text = sentence(entry, "look")
    assert "3 pictures" in text and shown(text, "c.png", "wide 96") and shown(text, "b.png", "mine")
    again = server.run(graph.prompt)  # no picture is left: the tagger does not run, the training's data go on
    assert sentence(again, "write") == "captions: none to write" and "3 pictures" in sentence(again, "look")
    Image.new("RGB", (128, 64), "blue").save(folder / "d.png")
    assert sentence(server.run(graph.prompt), "write") == "captions: 1 written"
    assert captions(folder)["d.txt"] == "wide 128"


def test_a_folder_is_gone_through_in_parts_and_large_pictures_are_made_smaller(server, folder):
    graph = tagging(server, most=1, max_side=64)
    for name in ("a.txt", "c.txt"):
        assert sentence(server.run(graph.prompt), "write") == "captions: 1 written" and captions(folder)[name] == "wide 64"
    assert sentence(server.run(graph.prompt), "write") == "captions: none to write"


def test_captions_are_replaced_only_when_asked_and_copied_before(server, folder):
    graph = tagging(server, which="all", existing="replace")
    said = sentence(server.run(graph.prompt), "write")
    assert said.startswith("captions: 2 written, 1 replaced; those before are in input/to_caption/.captions_before/")
    assert captions(folder)["b.txt"] == "wide 80"
    ((backup,),) = [list(part.iterdir()) for part in (folder / ".captions_before").iterdir()]
    assert backup.read_text(encoding="utf-8") == "mine"
    again = server.run(graph.prompt)
    assert sentence(again, "write") == "captions: 3 already so" and "size" in cached_nodes(again)


def test_one_file_for_the_graph_leaves_the_folder_as_it_is(server, base, folder):
    entry = server.run(tagging(server, write="one file for this graph").prompt)
    text = sentence(entry, "look")
    assert shown(text, "a.png", "wide 64") and shown(text, "b.png", "mine") and captions(folder) == {"b.txt": "mine"}
    (made,) = (base / "output" / "anima_trainer" / "captions").glob("*.json")
    assert json.loads(made.read_text(encoding="utf-8"))["c.png"] == {"caption": "wide 96"}


def test_what_does_not_fit_is_refused(server, folder):
    graph = tagging(server)
    graph.prompt["write"]["inputs"]["captions"] = graph.prompt["say"]["inputs"]["f_string"]
    assert "captions: 1 for 2 names; a tagger must give one for each picture" in error_of(server.run(graph.prompt))
    graph = tagging(server)
    graph.prompt["pictures"]["inputs"]["folder"] = "/"
    assert "outside of the folders that this server reads" in error_of(server.run(graph.prompt))
    graph = tagging(server)
    graph.prompt["write"]["inputs"]["folder"] = "../.."
    assert "outside of the folders that this server reads" in error_of(server.run(graph.prompt))
    assert captions(folder) == {"b.txt": "mine"}


def test_the_pictures_of_an_empty_choice_stop_no_other_node(server, folder):
    for name in NAMES:
        (folder / name).with_suffix(".txt").write_text("x", encoding="utf-8")
    graph = tagging(server)
    graph.add("show", "PreviewImage", images=["pictures", 0])
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    assert "show" not in entry["outputs"] and "3 pictures" in sentence(entry, "look")
