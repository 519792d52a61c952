"""Runs inside ComfyUI's interpreter: `run_oracle.py <checkout> <script> <folder>`; see `comfyui_oracle` in conftest.py."""

import importlib.util
import json
import sys
from pathlib import Path

checkout, script, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads its options from argv at import
sys.path.insert(0, checkout)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

spec = importlib.util.spec_from_file_location("oracle", script)
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)
params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
with torch.no_grad():
    answer = oracle.run(load_file(folder / "in.safetensors"), params)
save_file({k: v.contiguous() for k, v in answer.items()}, folder / "out.safetensors")
