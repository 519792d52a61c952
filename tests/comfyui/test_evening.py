"""An evening with one adapter in a real ComfyUI: what stands on the node after each thing that people do."""

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ..tiny import same_tensors
from .graphs import Graph, install_tiny_models
from .server import ComfyUI, cached_nodes, error_of, sentence, was_interrupted
from .texts import Texts

STEPS = 3000  # more than are taken before somebody stops it


@pytest.fixture
def own(tmp_path) -> Path:
    install_tiny_models(tmp_path)
    return tmp_path


def evening(server, seed: int) -> Graph:
    """A graph whose folder comes by a link; what stands behind the training changes with the seed, as a picture would."""
    graph = Graph(server)
    graph.add("name", "PrimitiveString", value="pics")
    graph.add("data", "AnimaDatasetFolder", folder=["name", 0], resolution="64", bucket_step=16, min_side=64)
    graph.training(output_name="evening", steps=STEPS, dataset=["data", 0])
    graph.add("behind", "AnimaSaveAdapter", lora=["train", 0], name=f"seed {seed}")
    return graph


def steps_in_log(base: Path, name: str = "evening") -> int:
    log = base / "output" / "anima_trainer" / f"{name}-run" / "log.jsonl"
    return log.read_text(encoding="utf-8").count('"event": "step"') if log.is_file() else 0


def runs(base: Path) -> list[str]:
    return sorted(path.name for path in (base / "output" / "anima_trainer").glob("*-run"))


def stop_and_keep(server, graph: Graph, base: Path, name: str) -> dict:
    prompt = server.queue(graph.prompt)
    server.wait_until(lambda: steps_in_log(base, name) > 5)
    assert server.post("/anima_trainer/stop", {"node": "train"})["stopping"] == ["train"]
    return server.result(prompt)


def test_an_evening(comfyui, own, tmp_path):
    base, (checkout, python) = own, comfyui
    with ComfyUI(checkout, python, base) as server, Texts(server, python, tmp_path / "texts") as texts:
        kept = stops_early(server, texts, base)
        samples_with_another_seed(server, texts, base, kept)
        renamed = renames_the_file(server, texts, base, kept)
    with ComfyUI(checkout, python, base) as server, Texts(server, python, tmp_path / "texts") as texts:
        runs_it_after_a_restart(server, texts, base, renamed)
        edits_a_caption(server, texts, base)
        deletes_the_file(server, texts, base)


def stops_early(server, texts, base) -> str:
    entry = stop_and_keep(server, evening(server, 1), base, "evening")
    told = sentence(entry)
    assert texts.last("train", "kept at step") == told
    pattern = rf"(kept at step \d+ of {STEPS}: models/loras/evening.safetensors; Continue Anima Run goes on)"
    return re.fullmatch(pattern + "; 1 warning: pictures cropped by more than a quarter: .*", told)[1]


def samples_with_another_seed(server, texts, base, kept: str) -> None:
    taken = steps_in_log(base)
    assert sentence(server.run(evening(server, 2).prompt)) == kept == texts.last("train", "kept at step")
    assert steps_in_log(base) == taken and runs(base) == ["evening-run"]


def renames_the_file(server, texts, base, kept: str) -> str:
    """In the same session, into a folder; and then once more."""
    loras = base / "models" / "loras"
    (loras / "styles").mkdir()
    (loras / "evening.safetensors").rename(loras / "styles" / "my favourite.safetensors")
    told = sentence(server.run(evening(server, 2).prompt))
    assert told == kept.replace("evening.safetensors", "styles/my favourite.safetensors") == texts.last("train", "kept at step")
    (loras / "styles" / "my favourite.safetensors").rename(loras / "better.safetensors")
    return kept.replace("evening.safetensors", "better.safetensors")


def runs_it_after_a_restart(server, texts, base, renamed: str) -> None:
    taken, entry = steps_in_log(base), server.run(evening(server, 2).prompt)
    assert sentence(entry) == renamed == texts.last("train", "kept at step") and "train" not in cached_nodes(entry)
    assert steps_in_log(base) == taken and runs(base) == ["evening-run"]


def edits_a_caption(server, texts, base) -> None:
    """Below a folder that a link names: it trains, and says why, while it does and at its end."""
    taken = steps_in_log(base)
    min((base / "input" / "pics").glob("*.txt")).write_text("somebody else", encoding="utf-8")
    told = sentence(stop_and_keep(server, evening(server, 2), base, "evening-2"))
    why = "trains anew, not as better.safetensors: the set of pictures and captions is not what it was"
    assert why in texts.of("train") and any(text.endswith(f" / 1\n{why}") for text in texts.of("train"))
    assert "models/loras/evening-2.safetensors" in told and told.endswith(f"\n{why}")
    assert texts.last("train", "kept at step") == told
    assert steps_in_log(base) == taken and steps_in_log(base, "evening-2") > 5


def deletes_the_file(server, texts, base) -> None:
    """It is written again from the last checkpoint, without a step."""
    taken, adapter = steps_in_log(base, "evening-2"), base / "models" / "loras" / "evening-2.safetensors"
    before = load_file(adapter)
    adapter.unlink()
    told = sentence(server.run(evening(server, 2).prompt))
    assert told.endswith("; its file was gone or changed, and is written again from the run's last checkpoint, without a step")
    assert texts.last("train", "kept at step") == told and same_tensors(load_file(adapter), before)
    assert steps_in_log(base, "evening-2") == taken and runs(base) == ["evening-2-run", "evening-run"]


def test_every_way_out_stands_on_the_node(comfyui, server, base, tmp_path):
    _, python = comfyui
    shutil.copy(base / "models" / "vae" / "tiny.safetensors", base / "models" / "diffusion_models" / "wrong.safetensors")
    with Texts(server, python, tmp_path / "texts") as texts:
        graph = Graph(server)
        graph.training(output_name="ways", steps=200)
        graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
        wrong_file(server, texts, graph)
        cancels(server, texts, base, graph)
        assert "4 pictures" in texts.of("look")[-1] and "captions as they are trained" in texts.of("look")[-1]
        told = sentence(server.run(graph.prompt))
        assert re.match(r"done: models/loras/ways.safetensors, 200 steps, loss \d\.\d{3}, 1 warning: pictures cropped", told), (
            told
        )
        assert texts.last("train", "done") == told
        assert sentence(server.run(graph.prompt)) == told  # all cached
        server.wait_until(lambda: texts.of("train").count(told) == 2)


def wrong_file(server, texts, graph: Graph) -> None:
    """The error stands on the node, with a short name in ComfyUI's own notice, until the node is executed again."""
    graph.prompt["transformer"]["inputs"]["transformer"] = "wrong.safetensors"
    entry = server.run(graph.prompt)
    line = error_of(entry).splitlines()[0]
    assert "wrong.safetensors" in line and texts.last("transformer", line) == line
    types = [m[1]["exception_type"] for m in entry["status"]["messages"] if m[0] == "execution_error"]
    assert types == ["anima_trainer.FileError"]
    graph.prompt["transformer"]["inputs"]["transformer"] = "tiny.safetensors"


def cancels(server, texts, base, graph: Graph) -> None:
    prompt = server.queue(graph.prompt)
    server.wait_until(lambda: steps_in_log(base, "ways") > 5)
    server.post("/interrupt", {})
    assert was_interrupted(server.result(prompt))
    told = texts.last("train", "cancelled")
    assert re.fullmatch(r"cancelled at step \d+ of 200, saved; Run continues", told), told
    assert texts.of("transformer")[-1] == " "
