"""Captions from the graph: the pictures of a folder for a tagger, and what it says about them for a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..anima_core.data.captioning import EXISTING, KEEP, Captioned, Place, captions_file, places, write_captions
from ..anima_core.data.picture_files import thumbnail
from ..anima_core.errors import AnimaError, FileError, SettingError
from ..anima_core.settings import SubsetConfig
from . import on_disk, tell, types
from .folders import folder_of_pictures, there_are
from .inspection import stage
from .node import AnimaNode
from .store import store_folder
from .widgets import inputs, widget

EXTENSION = widget("caption_extension", SubsetConfig, advanced=True)
WITHOUT, ALL = "without a caption", "all"
FILES, ONE_FILE = "text files beside the pictures", "one file for this graph"


def pictures_of(folder: str) -> Path:
    return Path(folder_of_pictures(folder, "`subset.image_dir`", "pictures"))


def chosen(folder: Path, which: str, skip: int, most: int, extension: str) -> tuple[list[Place], int]:
    """Return the pictures that are taken, and how many there are to choose from. most: 0 takes all."""
    found = [place for place in places(folder, extension) if which == ALL or not place.has_text]
    return found[skip : skip + most if most else None], len(found)


def choice_inputs() -> list[io.Input]:
    """Make the inputs that say which of the pictures are taken, and how large."""
    return [
        io.Combo.Input(
            "which",
            options=[WITHOUT, ALL],
            default=WITHOUT,
            optional=True,
            tooltip="Only pictures without a caption file, or with an empty one; or all.",
        ),
        io.Int.Input(
            "most",
            default=100,
            min=0,
            max=100_000,
            optional=True,
            tooltip="At most so many pictures in one run: all are in memory at once, with about 13 MB each at 1024 px. "
            "0 takes all.",
        ),
        io.Int.Input(
            "max_side",
            default=1024,
            min=64,
            max=8192,
            step=64,
            optional=True,
            tooltip="Pictures with a longer side are made smaller, px. Taggers look at 448, vision models at 1024.",
        ),
        io.Int.Input(
            "skip",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            advanced=True,
            tooltip="Pass over so many pictures first: to go through a large folder in parts.",
        ),
    ]


class AnimaFolderPictures(AnimaNode):
    widgets = (EXTENSION,)
    own_words: ClassVar = {"subset.image_dir": "folder"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaFolderPictures",
            display_name="Anima Folder Pictures",
            category=types.DATA,
            description="Pictures of a folder as a list, for a tagger or vision model; captions go to Anima Write Captions.",
            search_aliases=["tagger", "caption", "load folder", "wd14", "anima train"],
            inputs=[
                types.picture_folder(),
                *choice_inputs(),
                *inputs(cls.widgets),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True),
                io.String.Output(display_name="names", is_output_list=True),
                io.String.Output(display_name="folder"),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        folder: str | None = "",
        which: str = WITHOUT,
        most: int = 100,
        skip: int = 0,
        caption_extension: str = ".txt",
        **others: Any,
    ) -> str | float:
        """Tell the pictures that are taken, not their captions: those that were just written tag no picture again."""
        if None in (folder, which, most, skip, caption_extension):
            return on_disk.unknown()
        try:
            path = pictures_of(folder or "")
            taken, _ = chosen(path, which, skip, most, caption_extension)
        except AnimaError as error:  # raised again, on the node, by run
            return str(error)
        return "\n".join(on_disk.file_state(str(path / place.name)) for place in taken)

    @classmethod
    def run(
        cls,
        folder: str = "",
        which: str = WITHOUT,
        most: int = 100,
        max_side: int = 1024,
        skip: int = 0,
        caption_extension: str = ".txt",
    ) -> io.NodeOutput:
        path = pictures_of(folder)
        taken, count = chosen(path, which, skip, most, caption_extension)
        if not taken and which == ALL:
            raise FileError(f"{path}: no pictures{f' behind the first {skip}' if skip else ''}; {there_are()}")
        images, names, unreadable = decoded(path, taken, max_side)
        tell.say(sentence_of(images, count, which, unreadable))
        if not images:  # no node takes an empty list; Anima Write Captions asks for no captions then
            return io.NodeOutput([ExecutionBlocker(None)], [], str(path))
        return io.NodeOutput(images, names, str(path))


def decoded(folder: Path, taken: Sequence[Place], max_side: int) -> tuple[list[torch.Tensor], list[str], list[str]]:
    """Return pictures [1, H, W, 3] in [0, 1], their names, and the names of those that cannot be read."""
    images, names, unreadable = [], [], []
    progress = stage("pictures")
    for number, place in enumerate(taken, start=1):
        try:
            array = np.array(thumbnail(folder / place.name, max_side), dtype=np.float32)
        except FileError:
            unreadable.append(place.name)
        else:
            images.append(torch.from_numpy(array).div_(255)[None])
            names.append(place.name)
        progress(number, len(taken))
    return images, names, unreadable


def sentence_of(images: Sequence[torch.Tensor], count: int, which: str, unreadable: Sequence[str]) -> str:
    """Say how many pictures are in memory, and what is left."""
    kind = "pictures without a caption" if which == WITHOUT else "pictures"
    size = sum(image.numel() * image.element_size() for image in images) / 1e9
    said = f"{len(images)} of {count} {kind}, {size:.1f} GB in memory" if images else f"{count} {kind}: none to look at"
    return said + (f"; {len(unreadable)} cannot be read ({unreadable[0]} …)" if unreadable else "")


class AnimaWriteCaptions(AnimaNode):
    widgets = (EXTENSION,)
    own_words: ClassVar = {"subset.image_dir": "folder"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaWriteCaptions",
            display_name="Anima Write Captions",
            category=types.DATA,
            description="Captions that a tagger or vision model of yours made: as text files beside the pictures, or as one "
            "file for this graph alone. A caption that is there stays, unless you choose otherwise; then it is copied first.",
            search_aliases=["save captions", "tagger", "write txt", "anima train"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.String.Input("folder", force_input=True, tooltip="The folder output of Anima Folder Pictures."),
                io.String.Input("names", force_input=True, tooltip="The names output of Anima Folder Pictures."),
                io.String.Input("captions", force_input=True, lazy=True, tooltip="One caption for each name, in their order."),
                io.Combo.Input(
                    "existing",
                    options=list(EXISTING),
                    default=KEEP,
                    optional=True,
                    tooltip="What becomes of a caption that is there: kept; replaced; the new one put behind it with a comma, "
                    "or as a line of its own. What changes is copied before into .captions_before.",
                ),
                io.Combo.Input(
                    "write",
                    options=[FILES, ONE_FILE],
                    default=FILES,
                    optional=True,
                    tooltip="Text files beside the pictures, for good; or one file in the output folder, for metadata_file of "
                    "Anima Dataset (folder), which leaves the folder as it is.",
                ),
                *inputs(cls.widgets),
            ],
            outputs=[
                io.String.Output(display_name="folder"),
                io.String.Output(display_name="metadata_file"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def check_lazy_status(cls, names: Sequence[str] = (), **others: Any) -> list[str]:
        """Ask for captions only where there are pictures: without any, the tagger has nothing to run on."""
        return ["captions"] if names else []

    @classmethod
    def fingerprint_inputs(cls, **others: Any) -> float:
        return on_disk.unknown()  # a caption may have been deleted since

    @classmethod
    def run(
        cls,
        folder: Sequence[str],
        names: Sequence[str],
        captions: Sequence[str | None] = (),
        existing: Sequence[str] = (KEEP,),
        write: Sequence[str] = (FILES,),
        caption_extension: Sequence[str] = (".txt",),
    ) -> io.NodeOutput:
        path, texts = pictures_of(folder[0]), [text for text in captions if text is not None] if names else []
        if len(texts) != len(names):
            raise SettingError(f"captions: {len(texts)} for {len(names)} names; a tagger must give one for each picture")
        one_file, pairs = "", list(zip(names, texts))
        if write[0] == ONE_FILE:
            where = store_folder() / "captions"
            made, told = captions_file(path, pairs, existing[0], caption_extension[0], where)
            one_file = str(made)
        else:
            told = write_captions(path, pairs, existing[0], caption_extension[0])
        sentence = sentence_with_backup(told)
        tell.say(sentence)
        return io.NodeOutput(str(path), one_file, sentence, ui={"text": [sentence]})


def sentence_with_backup(told: Captioned) -> str:
    return told.sentence() + (f"; those before are in {tell.shown(told.backup)}" if told.backup else "")


NODES: list[type[io.ComfyNode]] = [AnimaFolderPictures, AnimaWriteCaptions]
