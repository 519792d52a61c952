"""API prompts for the integration tests: defaults come from /object_info, as the frontend's do."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anima_core.demo.models import write_models
from anima_core.demo.pictures import write_pictures

from ..tiny import CORPUS
from .make_workflows import default_of, is_widget, nested, specs
from .server import ComfyUI

Link = list  # [node id, output index]


def install_tiny_models(base: Path) -> None:
    """Tiny files under names of their own in a base directory's models."""
    paths = write_models(base / "tiny", CORPUS)
    for folder in ("diffusion_models", "vae", "text_encoders"):
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(paths["anima_transformer"], base / "models" / "diffusion_models" / "tiny.safetensors")
    shutil.copy(paths["vae"], base / "models" / "vae" / "tiny.safetensors")
    shutil.copytree(paths["qwen"].parent, base / "models" / "text_encoders" / "tiny_qwen", dirs_exist_ok=True)
    (base / "models" / "text_encoders" / "tiny_qwen" / "config.json").write_text("{}", encoding="utf-8")
    shutil.copytree(paths["t5_tokenizer_dir"], base / "models" / "text_encoders" / "tiny_t5", dirs_exist_ok=True)
    write_pictures(base / "input" / "pics", 4)


class Graph:
    """A prompt under construction. `add` fills what is not given with the node's defaults."""

    def __init__(self, server: ComfyUI) -> None:
        self.info = server.get("/object_info")
        self.prompt: dict[str, dict] = {}

    def add(self, name: str, kind: str, /, **inputs: Any) -> str:
        values: dict[str, Any] = {}
        for key, type_, options in specs(self.info[kind]):
            if type_ == "COMFY_DYNAMICCOMBO_V3":
                chosen = inputs.get(key, options["options"][0]["key"])
                option = next(o for o in options["options"] if o["key"] == chosen)
                values[key] = chosen
                values |= {f"{key}.{n}": default_of(k, rest[0] if rest else {}) for n, (k, *rest) in nested(option).items()}
            elif is_widget(type_, options):
                values[key] = default_of(type_, options)
        self.prompt[name] = {"class_type": kind, "inputs": values | inputs}
        return name

    def models(self) -> dict[str, Link]:
        """The four loaders; return their links."""
        self.add("transformer", "AnimaTransformerLoader", transformer="tiny.safetensors")
        self.add("vae", "AnimaVAELoader", vae="tiny.safetensors")
        self.add("qwen", "AnimaQwenLoader", qwen="tiny_qwen/")
        self.add("t5", "AnimaT5TokenizerLoader", tokenizer="tiny_t5/")
        return {"transformer": ["transformer", 0], "vae": ["vae", 0], "qwen": ["qwen", 0], "t5_tokenizer": ["t5", 0]}

    def training(
        self, name: str = "train", network: str = "AnimaLoRANetwork", dataset: Link | None = None, **settings: Any
    ) -> str:
        """The four loaders, a dataset, a network, an optimizer and the training node."""
        links = self.models()
        if dataset is None:
            self.add("data", "AnimaDatasetFolder", folder="pics", resolution="64", bucket_step=16, min_side=64)
        if network:
            self.add(f"{name}_network", network, rank=4, alpha=4.0)
        if "optimizer" not in self.prompt:
            self.add("optimizer", "AnimaOptimizer", learning_rate=1e-3)
        links |= {"dataset": dataset or ["data", 0], "network": [f"{name}_network", 0], "optimizer": ["optimizer", 0]}
        return self.add(name, "AnimaTrain", **(links | {"steps": 4, "batch_size": 2} | settings))


def prompt_of(flow: dict, info: dict) -> dict[str, dict]:
    """Return the prompt that the frontend queues for a workflow; notes are left out."""
    sources = {number: [str(node), output] for number, node, output, *_ in flow["links"]}
    prompt = {}
    for node in flow["nodes"]:
        if node["type"] in info:
            linked = {entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry["link"]}
            inputs = widget_inputs(iter(node["widgets_values"]), info[node["type"]], linked)
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": linked | inputs}
    return prompt


def widget_inputs(values: Iterator[Any], schema: dict, linked: dict) -> dict[str, Any]:
    """Return a node's inputs from the values of its widgets, in their order."""
    found: dict[str, Any] = {}
    for name, kind, options in specs(schema):
        if name in linked or not is_widget(kind, options):
            continue
        found[name] = next(values)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = next(option for option in options["options"] if option["key"] == found[name])
            found |= {f"{name}.{inner}": next(values) for inner in nested(chosen)}
        if options.get("control_after_generate") or options.get("image_upload"):
            next(values)  # a widget that only the frontend has
    return found
