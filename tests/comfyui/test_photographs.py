"""Real photographs through the whole graph: sizes, modes and sentences as people have them, none made for a test."""

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from .graphs import Graph
from .server import sentence

PHOTOGRAPHS = {  # of scikit-image, all of them free to use; its own names
    "astronaut.png": "A woman in an orange space suit smiles in front of a flag and a model of a shuttle.",
    "brick.png": "texture, brick wall, grey",
    "camera.png": "A man with a camera on a tripod, black and white.",
    "chelsea.png": "cat, close-up, whiskers, looking aside",
    "coffee.png": "A cup of coffee on a wooden table, with a spoon.",
    "horse.png": "silhouette, horse",
    "hubble_deep_field.jpg": "space, galaxies, stars, black background",
    "motorcycle_left.png": "A motorcycle stands in a garage.",
    "retina.jpg": "The retina of a human eye.",
    "rocket.jpg": "A rocket starts at night, with smoke around the tower.",
}


@pytest.fixture
def photographs(base) -> Path:
    """The photographs with captions, in ComfyUI's input folder."""
    data = Path(pytest.importorskip("skimage").__file__).parent / "data"
    folder = base / "input" / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in PHOTOGRAPHS.items():
        with Image.open(data / name) as picture:
            assert min(picture.size) >= 300
        (folder / name).write_bytes((data / name).read_bytes())
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


def events_of(base: Path, name: str, kind: str) -> list[dict]:
    lines = (base / "output" / "anima_trainer" / f"{name}-run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_photographs_go_through_the_whole_graph(server, base, photographs):
    """Looked through, trained with two held out, drawn, measured, reported, saved and applied."""
    graph = Graph(server)
    graph.add("data", "AnimaDatasetFolder", folder="photographs", resolution="128", bucket_step=16, min_side=64)
    graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
    graph.add("text", "PreviewAny", source=["look", 0])
    graph.add("sheet", "SaveImage", images=["look", 1], filename_prefix="sheet")
    graph.add("held_out", "AnimaHeldOut", share=0.2, every_n_steps=4)
    graph.add("samples", "AnimaSamplePrompts", prompts="a cat\na rocket", width=64, height=64, steps=2, cfg=1.0, at_first=False)
    more = {"samples": ["samples", 0], "held_out": ["held_out", 0]}
    graph.training(output_name="photographs", dataset=["data", 0], steps=12, **more)
    graph.add("drawn", "SaveImage", images=["train", 3], filename_prefix="drawn")
    graph.add("report", "AnimaRunReport", path=["train", 4])
    graph.add("shown", "PreviewAny", source=["report", 0])
    graph.add("kept", "AnimaSaveAdapter", lora=["train", 0], name="photographs kept")
    done = server.run(graph.prompt)
    assert "12 steps" in sentence(done)

    said = done["outputs"]["text"]["text"][0]
    assert "10 pictures" in said and "grey" in said and "transparent" in said
    assert len(done["outputs"]["drawn"]["images"]) == 2 and done["outputs"]["sheet"]["images"]
    steps = events_of(base, "photographs", "step")
    assert [event["step"] for event in steps] == list(range(1, 13)) and all(event["loss"] > 0 for event in steps)
    measured = events_of(base, "photographs", "held_out")
    assert [event["step"] for event in measured] == [0, 4, 8, 12]
    assert {event["pictures"] for event in measured} == {2}
    assert measured[-1]["best_loss"] < measured[0]["base"], "what is learnt of photographs helps with others"
    assert load_file(base / "models" / "loras" / "photographs kept.safetensors").keys()
