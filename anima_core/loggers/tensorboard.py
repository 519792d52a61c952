"""TensorBoard's files: `tensorboard --logdir <folder>` shows them."""

import json
from collections.abc import Mapping
from typing import Any


class TensorBoard:
    """Writes into one folder; a run that goes on adds to it."""

    name = "TensorBoard"

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start(self, run: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._folder)
        if settings:
            self._writer.add_text("settings", f"```json\n{json.dumps(settings, indent=1, ensure_ascii=False)}\n```")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: str, caption: str) -> None:
        import numpy as np
        from PIL import Image

        self._writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        self._writer.close()
