"""Runs inside ComfyUI's interpreter: `run_oracle.py <checkout>` answers questions as long as there are any.

Each line of its input is a JSON list [script, folder]; see `comfyui_oracle` in conftest.py.
"""

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

checkout = sys.argv[1]
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads its options from argv at import
sys.path.insert(0, checkout)
sys.path.append(str(Path(__file__).resolve().parents[2]))  # this project

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def answer(script: str, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("oracle", script)
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        tensors = oracle.run(load_file(folder / "in.safetensors"), params)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "half.safetensors")
    os.replace(folder / "half.safetensors", folder / "out.safetensors")


for line in sys.stdin:
    script, folder = json.loads(line)
    try:
        answer(script, Path(folder))
    except Exception:
        (Path(folder) / "failed.txt").write_text(traceback.format_exc(), encoding="utf-8")
