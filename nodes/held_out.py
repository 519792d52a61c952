"""Pictures that are measured and never trained."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.errors import SettingError
from ..anima_core.settings import HeldOutConfig
from . import on_disk, types
from .folders import folder_of_pictures
from .node import AnimaNode
from .roots import user_path
from .widgets import inputs, settings_from, widget


class AnimaHeldOut(AnimaNode):
    widgets = (
        widget("share", HeldOutConfig, default=0.1, why="whoever adds this node wants some; without it none are", step=0.01),
        widget("count", HeldOutConfig, max=10000, advanced=True),
        widget("folder", HeldOutConfig),
        widget("every_n_steps", HeldOutConfig, max=100000),
        widget("patience", HeldOutConfig, max=1000),
        widget("keep_best", HeldOutConfig),
        widget("every_n_epochs", HeldOutConfig, max=10000, advanced=True),
        widget("most", HeldOutConfig, max=100000, advanced=True),
        widget("seed", HeldOutConfig, control_after_generate=False, max=0x7FFFFFFFFFFFFFFF, advanced=True),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaHeldOut",
            display_name="Anima Held-Out Pictures",
            category=types.TRAINING,
            description="Pictures that are only measured, at fixed noise: their loss tells when an adapter has learnt "
            "enough, and which of two runs is better.",
            search_aliases=["validation loss", "validation split", "early stopping", "overfitting", "过拟合", "验证集"],
            inputs=inputs(cls.widgets),
            outputs=[types.HeldOut.Output(display_name="held_out")],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = "", **others: Any) -> str | float:
        if folder is None:
            return on_disk.unknown()
        try:
            return on_disk.state(user_path(folder, "folder")) if folder.strip() else ""
        except SettingError as error:  # raised again, on the node, by run
            return str(error)

    @classmethod
    def run(cls, **given: Any) -> io.NodeOutput:
        found = settings_from(cls.widgets, given, HeldOutConfig)
        if found["folder"].strip():  # the share is there by default, and whoever names a folder means it
            found |= {"folder": folder_of_pictures(found["folder"], "`held_out.folder`"), "share": 0.0, "count": 0}
        elif found["count"]:
            found["share"] = 0.0
        return io.NodeOutput(HeldOutConfig(**found))


NODES: list[type[io.ComfyNode]] = [AnimaHeldOut]
