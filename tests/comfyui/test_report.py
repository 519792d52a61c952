"""The report of a run as a node: of a training by its link, of a run by its name, of an adapter that was renamed."""

import pytest
from PIL import Image

from .graphs import Graph
from .server import error_of, sentence, status


@pytest.fixture(scope="module")
def trained(server, base):
    """The entry of a graph that trained with previews, and reported in the same prompt."""
    graph = Graph(server)
    small = dict(width=64, height=64, steps=1, cfg=1.0, every_n_steps=2)
    graph.add("prompts", "AnimaSamplePrompts", prompts="red circle\n<b>blue</b>", **small)
    graph.training(output_name="reported", samples=["prompts", 0])
    graph.add("report", "AnimaRunReport", path=["train", 4])
    graph.add("sheet", "SaveImage", images=["report", 1], filename_prefix="sheet")
    return server.run(graph.prompt)


def page_of(base, name: str) -> str:
    return (base / "output" / "anima_trainer" / f"{name}-run" / "report.html").read_text(encoding="utf-8")


def test_a_training_is_reported_in_the_same_prompt(trained, base):
    assert sentence(trained, "report") == "report: output/anima_trainer/reported-run/report.html"
    page = page_of(base, "reported")
    assert "4 of 4" in page and page.count("<img ") == 7 and "&lt;b&gt;blue&lt;/b&gt;" in page
    (saved,) = trained["outputs"]["sheet"]["images"]
    sheet = Image.open(base / "output" / saved["filename"])
    assert sheet.width > 2 * 64 and sheet.height > 3 * 64  # steps 0, 2 and 4, two prompts


def test_a_runs_adapters_are_drawn_side_by_side(trained, server, base):
    graph = Graph(server)
    graph.add("prompts", "AnimaSamplePrompts", prompts="red circle", width=64, height=64, steps=1, cfg=1.0)
    loaded = graph.models()
    graph.add("grid", "AnimaGrid", path="reported", strengths="0, 1", samples=["prompts", 0], cell_size=64, **loaded)
    graph.add("sheet", "SaveImage", images=["grid", 0], filename_prefix="side_by_side")
    entry = server.run(graph.prompt)
    assert sentence(entry, "grid") == "2 pictures: output/anima_trainer/grids/grid.png", error_of(entry)
    (saved,) = entry["outputs"]["sheet"]["images"]
    drawn = Image.open(base / "output" / "anima_trainer" / "grids" / "grid.png")
    assert Image.open(base / "output" / saved["filename"]).size == drawn.size
    graph.prompt["grid"]["inputs"] |= {"path": "", "adapters": "nobody"}
    assert "adapters: nobody: no such file in models/loras" in error_of(server.run(graph.prompt))


def test_a_run_is_found_by_its_name_and_by_its_renamed_adapter(trained, server, base):
    assert status(trained) == "success"
    loras = base / "models" / "loras"
    (loras / "reported.safetensors").rename(loras / "renamed_since.safetensors")
    for path in ("reported", "reported-run", str(loras / "renamed_since.safetensors")):
        (base / "output" / "anima_trainer" / "reported-run" / "report.html").unlink()
        graph = Graph(server)
        graph.add("report", "AnimaRunReport", path=path)
        assert sentence(server.run(graph.prompt), "report") == "report: output/anima_trainer/reported-run/report.html"
        assert "4 of 4" in page_of(base, "reported")


@pytest.mark.parametrize(
    "path, text",
    [
        ("", "path='': no run of this server; link the path of a training, or write the name of a run"),
        ("nobody", "path='nobody': no run of this server"),
        ("../pics", "outside of the folders that this server reads"),
        ("diffusion_models/tiny.safetensors", "no run of this server"),
        ("a:b", "use a plain file name"),
    ],
)
def test_what_is_no_run_is_said(server, path, text):
    graph = Graph(server)
    graph.add("report", "AnimaRunReport", path=path)
    assert text in error_of(server.run(graph.prompt))
