"""Rules for captions from a node of their own, in a real ComfyUI: trained as shown, and known again."""

import json

import pytest
from PIL import Image

from .graphs import Graph
from .server import ComfyUI, error_of, sentence

RULES = {"caption_trigger": "sks", "caption_replace": "smile => grin\nre:^@ =>", "caption_order": "nl"}


@pytest.fixture(scope="module")
def captioned(base):
    folder = base / "input" / "by_category"
    folder.mkdir()
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(folder / f"{number}.png")
        caption = {"tags": ["smile", color], "artist": "@wlop", "nl": f"A {color} wall.", "count": "1girl"}
        (folder / f"{number}.json").write_text(json.dumps(caption), encoding="utf-8")
    return folder


def graph_of(server: ComfyUI, **rules: str) -> Graph:
    """A training on JSON captions, and a look at them."""
    graph = Graph(server)
    graph.add("rules", "AnimaCaptionRules", **rules)
    shape = {"resolution": "64", "bucket_step": 16, "min_side": 64, "caption_extension": ".json"}
    graph.add("data", "AnimaDatasetFolder", folder="by_category", caption_rules=["rules", 0], **shape)
    graph.training(dataset=["data", 0], output_name="ruled")
    graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
    return graph


def test_json_captions_train_by_the_rules_that_are_linked(server, captioned):
    entry = server.run(graph_of(server, **RULES).prompt)
    assert sentence(entry).startswith("done: models/loras/ruled.safetensors, 4 steps")
    assert "sks, A red wall. 1girl, wlop, grin, red" in sentence(entry, "look")
    again = server.run(graph_of(server, **RULES, caption_sources="\n").prompt)
    assert sentence(again) == "already trained: models/loras/ruled.safetensors, 4 steps"
    changed = sentence(server.run(graph_of(server, **RULES | {"caption_trigger": "ohwx"}).prompt))
    assert changed.startswith("done: models/loras/ruled-2.safetensors") and "trains anew, not as ruled.safetensors" in changed
    print(changed)


def test_without_rules_a_dataset_is_what_it_was(server, captioned):
    alone, linked = graph_of(server), graph_of(server)
    del alone.prompt["data"]["inputs"]["caption_rules"]
    for graph in (alone, linked):
        graph.prompt["train"]["inputs"]["output_name"] = "unruled"
    assert sentence(server.run(alone.prompt)).startswith("done: ")
    assert sentence(server.run(linked.prompt)) == "already trained: models/loras/unruled.safetensors, 4 steps"


def test_pictures_from_the_graph_take_rules_but_no_caption_files(server):
    graph = Graph(server)
    graph.add("picture", "EmptyImage", width=64, height=64, batch_size=1, color=255)
    graph.add("rules", "AnimaCaptionRules", caption_blacklist="watermark")
    graph.add("data", "AnimaDatasetImages", images=["picture", 0], captions="grey, watermark", caption_rules=["rules", 0])
    graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
    text = sentence(server.run(graph.prompt), "look")
    assert "tokens: grey" in text and "grey, watermark" not in text.split("captions as they are trained")[1]
    graph.prompt["rules"]["inputs"]["caption_sources"] = ".txt=2\n.nl.txt=1"
    assert "caption_sources='.txt=2, .nl.txt=1': pictures from the graph have one caption each" in error_of(
        server.run(graph.prompt)
    )
