"""Writes example_workflows/*.json from short descriptions and a server's /object_info, so that they never drift from the nodes.

`python -m tests.comfyui.make_workflows` starts the ComfyUI that the tests use and writes all files.
"""

# ruff: noqa: E501 (notes as they are shown)

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.comfyui.server import ComfyUI
from tests.conftest import ROOT, find_comfyui

FOLDER = ROOT / "example_workflows"
HOST = "https://huggingface.co/circlestone-labs/Anima/resolve/main/split_files"
FILES = {
    "transformer": ("anima-base-v1.0.safetensors", "diffusion_models"),
    "qwen": ("qwen_3_06b_base.safetensors", "text_encoders"),
    "vae": ("qwen_image_vae.safetensors", "vae"),
}
LINE = 24  # px of a widget or slot row in the frontend
TALL = 2  # further rows of a text box


def model(kind: str) -> dict[str, str]:
    """What the missing-models dialog needs to offer the download."""
    name, folder = FILES[kind]
    return {"name": name, "url": f"{HOST}/{folder}/{name}", "directory": folder}


@dataclass
class Node:
    name: str  # within the description
    type: str
    at: tuple[int, int]
    width: int = 300
    values: dict[str, Any] = field(default_factory=dict)  # widgets that differ from their defaults
    links: dict[str, str] = field(default_factory=dict)  # input -> "node.output_index"
    models: tuple[str, ...] = ()
    title: str = ""
    height: int = 0


def is_widget(kind: Any, options: dict) -> bool:
    scalar = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
    return scalar and not options.get("forceInput")


def specs(info: dict) -> list[tuple[str, Any, dict]]:
    """(name, type, options) of a node's inputs, in the frontend's order."""
    found = []
    for group in ("required", "optional"):
        for name in info.get("input_order", {}).get(group, []):
            kind, *rest = info["input"][group][name]
            found.append((name, kind, rest[0] if rest else {}))
    return found


def widget_values(node: Node, info: dict) -> list[Any]:
    values = []
    for name, kind, options in specs(info):
        if name in node.links or not is_widget(kind, options):
            continue
        if kind == "COMFY_DYNAMICCOMBO_V3":
            values += dynamic_values(name, node, options)
            continue
        values.append(node.values.get(name, default_of(kind, options)))
        if options.get("control_after_generate"):
            values.append("fixed")
        if options.get("image_upload"):
            values.append("image")
    return values


def dynamic_values(name: str, node: Node, options: dict) -> list[Any]:
    key = node.values.get(name, options["options"][0]["key"])
    chosen = next(option for option in options["options"] if option["key"] == key)
    inputs = nested(chosen).items()
    return [key, *(node.values.get(f"{name}.{n}", default_of(k, rest[0] if rest else {})) for n, (k, *rest) in inputs)]


def nested(option: dict) -> dict[str, list]:
    """Return the inputs of an option of a DynamicCombo, in the frontend's order."""
    return option["inputs"].get("required", {}) | option["inputs"].get("optional", {})


def default_of(kind: Any, options: dict) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options")
    if "default" in options:
        return options["default"]
    if choices:
        return choices[0]
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(kind if isinstance(kind, str) else "", "")


def build(nodes: list[Node], info: dict[str, dict]) -> dict:
    """A workflow in the frontend's own format, version 0.4."""
    numbers = {node.name: i for i, node in enumerate(nodes, start=1)}
    links: list[list] = []
    drawn = []
    for node in nodes:
        schema = info.get(node.type, {"input": {}, "input_order": {}, "output": [], "output_name": []})
        sockets = [(n, k) for n, k, o in specs(schema) if n in node.links or not is_widget(k, o)]
        inputs = []
        for slot, (name, kind) in enumerate(sockets):
            entry: dict[str, Any] = {"name": name, "type": kind if isinstance(kind, str) else "COMBO", "link": None}
            if name in node.links:
                source, _, index = node.links[name].partition(".")
                origin = info[next(n for n in nodes if n.name == source).type]
                links.append(
                    [
                        len(links) + 1,
                        numbers[source],
                        int(index or 0),
                        numbers[node.name],
                        slot,
                        origin["output"][int(index or 0)],
                    ]
                )
                entry["link"] = links[-1][0]
            inputs.append(entry)
        drawn.append(draw(node, numbers[node.name], schema, inputs))
    for number, source, index, *_ in links:
        drawn[source - 1]["outputs"][index]["links"].append(number)
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": drawn,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def draw(node: Node, number: int, schema: dict, inputs: list[dict]) -> dict:
    values = [node.values["text"]] if node.type == "MarkdownNote" else widget_values(node, schema)
    outputs = [{"name": n, "type": t, "links": []} for n, t in zip(schema["output_name"], schema["output"])]
    tall = sum(bool(options.get("multiline")) for name, _, options in specs(schema) if name not in node.links)
    tall += node.type == "AnimaOptimizer"  # its arguments are nested
    rows = max(len(inputs), len(outputs)) + len(values) + TALL * tall
    properties: dict[str, Any] = {"Node name for S&R": node.type}
    if node.models:
        properties["models"] = [model(kind) for kind in node.models]
    drawn = {
        "id": number,
        "type": node.type,
        "pos": list(node.at),
        "size": [node.width, node.height or 40 + LINE * rows],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": properties,
        "widgets_values": values,
    }
    return drawn | ({"title": node.title} if node.title else {})


def loaders(x: int = 0, y: int = 0) -> list[Node]:
    name = {kind: file for kind, (file, _) in FILES.items()}
    return [
        Node(
            "transformer",
            "AnimaTransformerLoader",
            (x, y),
            values={"transformer": name["transformer"]},
            models=("transformer",),
        ),
        Node("vae", "AnimaVAELoader", (x, y + 130), values={"vae": name["vae"]}, models=("vae",)),
        Node("qwen", "AnimaQwenLoader", (x, y + 230), values={"qwen": name["qwen"]}, models=("qwen",)),
        Node("t5", "AnimaT5TokenizerLoader", (x, y + 330)),
    ]


def training(x: int, y: int, dataset: str, network: str, name: str = "train", model_from: str = "unet", **values: Any) -> Node:
    links = {
        "transformer": "transformer",
        "vae": "vae",
        "qwen": "qwen",
        "t5_tokenizer": "t5",
        "dataset": dataset,
        "network": network,
        "optimizer": "optimizer",
        "model": model_from,
    }
    return Node(name, "AnimaTrain", (x, y), width=330, links=links, values=values)


def sampling(x: int, y: int, trained: str, tag: str = "", prefix: str = "anima") -> list[Node]:
    """KSampler as the official Anima template sets it, on the trained model."""
    links = {"model": f"{trained}.1", "positive": "positive", "negative": "negative", "latent_image": "size"}
    values = {"seed": 42, "steps": 30, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return [
        Node(f"sampler{tag}", "KSampler", (x, y), links=links, values=values),
        Node(f"decode{tag}", "VAEDecode", (x, y + 330), width=200, links={"samples": f"sampler{tag}", "vae": "image_vae"}),
        Node(
            f"save{tag}",
            "SaveImage",
            (x + 330, y),
            height=400,
            links={"images": f"decode{tag}"},
            values={"filename_prefix": prefix},
        ),
    ]


def prompts(x: int, y: int) -> list[Node]:
    name = {kind: file for kind, (file, _) in FILES.items()}
    return [
        Node("unet", "UNETLoader", (x, y), values={"unet_name": name["transformer"]}, models=("transformer",)),
        Node(
            "clip", "CLIPLoader", (x, y + 130), values={"clip_name": name["qwen"], "type": "stable_diffusion"}, models=("qwen",)
        ),
        Node("image_vae", "VAELoader", (x, y + 280), values={"vae_name": name["vae"]}, models=("vae",)),
        Node("positive", "CLIPTextEncode", (x, y + 380), height=140, links={"clip": "clip"}, values={"text": "1girl, solo"}),
        Node(
            "negative",
            "CLIPTextEncode",
            (x, y + 560),
            height=140,
            links={"clip": "clip"},
            values={"text": "worst quality, low quality"},
        ),
        Node("size", "EmptyLatentImage", (x, y + 740), values={"width": 1024, "height": 1024, "batch_size": 1}),
    ]


def note(text: str, at: tuple[int, int]) -> Node:
    return Node("note", "MarkdownNote", at, width=620, height=150, values={"text": text})


FOLDER_NOTE = """**1** Put pictures and a `.txt` caption of the same name each into a folder inside `input`, and name it in *Anima Dataset*.
**2** Run. The adapter lands in `models/loras`; the picture on the right is drawn with it.

**1** 把图片和同名 `.txt` 标注放进 `input` 里的一个文件夹，在 *Anima Dataset* 中填写它的名字。
**2** 运行。适配器保存在 `models/loras`，右侧的图就是用它画的。"""


def folder_workflow(network: Node, values: dict[str, Any]) -> list[Node]:
    train = training(760, 0, "dataset", "network", **values)
    train.links["samples"] = "previews"
    return [
        *loaders(),
        Node("dataset", "AnimaDatasetFolder", (0, 450), values={"folder": "my_pictures"}),
        Node("inspect", "AnimaDatasetInspect", (0, 1520), links={"dataset": "dataset"}, height=120),
        Node("sheet", "PreviewImage", (380, 1180), height=320, links={"images": "inspect.1"}, title="Contact sheet"),
        network,
        Node("optimizer", "AnimaOptimizer", (380, 700)),
        Node("previews", "AnimaSamplePrompts", (0, 1040), values={"prompts": "1girl, solo"}),
        train,
        Node("loss", "LossGraphNode", (760, 1040), height=320, links={"loss": "train.2"}, values={"filename_prefix": "loss"}),
        Node("shown", "PreviewImage", (1150, 1040), height=320, links={"images": "train.3"}, title="Previews"),
        *prompts(1150, 0),
        *sampling(1510, 0, "train"),
        note(FOLDER_NOTE, (0, -190)),
    ]


def workflows() -> dict[str, list[Node]]:
    lora = Node("network", "AnimaLoRANetwork", (380, 0))
    lokr = Node("network", "AnimaLoKrNetwork", (380, 0))
    return {
        "train_lora_from_folder_and_sample": folder_workflow(lora, {"output_name": "my_anima_lora"}),
        "train_lokr": folder_workflow(lokr, {"output_name": "my_anima_lokr"}),
        "train_from_pictures_in_the_graph": pictures_workflow(),
        "train_from_toml": toml_workflow(),
        "compare_two_adapters": compare_workflow(),
    }


def pictures_workflow() -> list[Node]:
    text = "Choose two pictures and write what is on them. More: *Batch Images*, or any node that makes a list.\n\n选择两张图片并写明内容。更多图片可用任何输出批次或列表的节点。"
    return [
        *loaders(),
        Node("one", "LoadImage", (0, 450), height=320),
        Node("two", "LoadImage", (0, 800), height=320),
        Node("batch", "ImageBatch", (0, 1180), width=220, links={"image1": "one", "image2": "two"}),
        Node(
            "dataset",
            "AnimaDatasetImages",
            (760, 1040),
            links={"images": "batch"},
            values={"captions": "1girl, solo", "repeats": 10},
        ),
        Node("network", "AnimaLoRANetwork", (380, 0)),
        Node("optimizer", "AnimaOptimizer", (380, 700)),
        training(760, 0, "dataset", "network", steps=300, output_name="my_pictures"),
        *prompts(1150, 0),
        *sampling(1510, 0, "train"),
        note(text, (0, -190)),
    ]


def toml_workflow() -> list[Node]:
    text = "Give the `config.toml` of an earlier run, or an sd-scripts TOML. Every run writes one into `output/anima_trainer`.\n\n填写以前训练的 `config.toml` 或 sd-scripts 的 TOML。每次训练都会在 `output/anima_trainer` 里写一份。"
    return [
        Node("train", "AnimaTrainFromTOML", (0, 0), width=330, links={"model": "unet"}, values={"path": "config.toml"}),
        *prompts(400, 0),
        *sampling(760, 0, "train"),
        note(text, (0, -190)),
    ]


def compare_workflow() -> list[Node]:
    text = "The same pictures and seed, two networks. Both pictures come from the same noise.\n\n同样的图片和种子，两个网络；两张图来自同样的噪声。"
    return [
        *loaders(),
        Node("dataset", "AnimaDatasetFolder", (0, 450), values={"folder": "my_pictures"}),
        Node("optimizer", "AnimaOptimizer", (0, 1040)),
        Node("low", "AnimaLoRANetwork", (380, 0), values={"rank": 8, "alpha": 8.0}, title="Rank 8"),
        Node("high", "AnimaLoRANetwork", (380, 700), values={"rank": 64, "alpha": 64.0}, title="Rank 64"),
        training(760, 0, "dataset", "low", name="train_low", output_name="rank_8"),
        training(760, 800, "dataset", "high", name="train_high", output_name="rank_64"),
        *prompts(1150, 0),
        *sampling(1510, 0, "train_low", "_low", "rank_8"),
        *sampling(1510, 520, "train_high", "_high", "rank_64"),
        note(text, (0, -190)),
    ]


def main() -> None:
    checkout, python = find_comfyui()
    with tempfile.TemporaryDirectory() as base, ComfyUI(checkout, python, Path(base)) as server:
        info = server.get("/object_info")
    FOLDER.mkdir(exist_ok=True)
    for name, nodes in workflows().items():
        (FOLDER / f"{name}.json").write_text(
            json.dumps(build(nodes, info), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        print(f"{name}: {len(nodes)} nodes")


if __name__ == "__main__":
    main()
