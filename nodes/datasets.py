"""Datasets: folders, pictures from the graph, kohya's TOML; combining and inspecting them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..anima_core.compat.dataset_config import WORDS, read_dataset_config
from ..anima_core.errors import AnimaError, FileError, SettingError, in_words
from ..anima_core.settings import with_paths
from . import on_disk, tell, types
from .dataset_widgets import ALL, CAPTIONS, DRAWS, REPEATS, SIZES, Datasets, dataset_from
from .folders import folder_of_pictures, holds_pictures, there_are
from .inspection import CAPTIONS_SHOWN, inspected, looked_at
from .node import AnimaNode
from .roots import user_file, user_path
from .store import store_folder
from .widgets import inputs


class AnimaDatasetFolder(AnimaNode):
    widgets = ALL
    own_words: ClassVar = {"subset.image_dir": "folder"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDatasetFolder",
            display_name="Anima Dataset (folder)",
            category=types.DATA,
            description=(
                "A folder of pictures with a .txt caption beside each. Where it has sub-folders named N_words, those are "
                "trained "
                "instead, N times each whatever repeats says: 0 switches one off, the words are the caption of its pictures "
                "without one."
            ),
            search_aliases=["anima train", "training data", "lora dataset", "captions"],
            inputs=[
                types.picture_folder(),
                *inputs(ALL),
                types.caption_rules(),
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None = "", mask_folder: str | None = "", metadata_file: str | None = "", **others: Any
    ) -> str | float:
        if folder is None or mask_folder is None or metadata_file is None:
            return on_disk.unknown()
        try:
            named = [user_path(name, "`subset.image_dir`") for name in (folder, mask_folder, metadata_file) if name.strip()]
        except SettingError as error:  # raised again, on the node, by run
            return str(error)
        return "".join(map(on_disk.state, named))

    @classmethod
    def run(cls, folder: str = "", mask_folder: str = "", metadata_file: str = "", **given: Any) -> io.NodeOutput:
        path = folder_of_pictures(folder, "`subset.image_dir`")
        masks = user_path(mask_folder, "`subset.mask_dir`") if mask_folder.strip() else ""
        captions = user_path(metadata_file, "`subset.metadata_file`") if metadata_file.strip() else ""
        datasets = dataset_from(given | {"metadata_file": captions}, path, masks)
        try:
            return io.NodeOutput(looked_at(datasets, store_folder() / "cache"))
        except FileError as error:
            if holds_pictures(path):
                raise
            raise FileError(f"{error.text}; {there_are()}") from None


class AnimaDatasetImages(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDatasetImages",
            display_name="Anima Dataset (images)",
            category=types.DATA,
            description="Pictures from the graph: batches or lists of any sizes, with one caption for all or one for each.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="An IMAGE batch, or a list of pictures of different sizes."),
                io.String.Input(
                    "captions",
                    multiline=True,
                    placeholder="captions: what the pictures show",
                    default="",
                    optional=True,
                    tooltip="One caption for all, or a list as long as the pictures'.",
                ),
                *inputs([REPEATS, *SIZES, *CAPTIONS]),
                io.Mask.Input("masks", optional=True, tooltip="White counts, black does not. One for all, or one for each."),
                *inputs(DRAWS),
                types.caption_rules(),
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def run(
        cls, images: list[Any], captions: Sequence[str] = ("",), masks: list[Any] | None = None, **given: Any
    ) -> io.NodeOutput:
        plain = {name: value[0] for name, value in given.items()}
        if sources := (plain.get("caption_rules") or {}).get("caption_sources"):
            rule = "pictures from the graph have one caption each; leave it empty, or use Anima Dataset (folder)"
            raise SettingError(f"`subset.caption_sources`={', '.join(sources)!r}: {rule}")
        pictures = [picture for batch in images for picture in batch]
        texts = matched(captions, len(pictures), "captions")
        if not any(text.strip() for text in texts):
            raise SettingError("captions='': write what the pictures show, once for all or one for each")
        shades = None if masks is None else usable_masks([m for batch in masks for m in as_masks(batch)], len(pictures))
        folder, mask_folder = write_pictures(pictures, texts, shades)
        return io.NodeOutput(looked_at(dataset_from(plain, str(folder), str(mask_folder or "")), store_folder() / "cache"))


def as_masks(batch: torch.Tensor) -> list[torch.Tensor]:
    return list(batch) if batch.ndim == 3 else [batch]


def matched(values: Sequence[Any], count: int, name: str) -> list[Any]:
    """Return one for each picture: as given, or the only one repeated. Raises SettingError."""
    if len(values) == 1:
        return [*values] * count
    if len(values) != count:
        raise SettingError(f"{name}: {len(values)} for {count} pictures; give one, or one for each")
    return [*values]


def usable_masks(masks: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Return one mask for each picture. Raises SettingError when all are black; some that are, the scan names."""
    found = matched(masks, count, "masks")
    if not any(to_bytes(mask).any() for mask in found):
        raise SettingError(
            f"masks: all {len(found)} are black everywhere, so nothing would be trained; Load Image gives such a mask for a "
            f"picture without transparency: leave masks unconnected, or invert them"
        )
    return found


def write_pictures(
    pictures: list[torch.Tensor], captions: list[str], masks: list[torch.Tensor] | None
) -> tuple[Path, Path | None]:
    """Store pictures under a folder named by their content: the core reads folders, and finds its caches again."""
    arrays = [to_bytes(p) for p in pictures]
    shades = [None] * len(arrays) if masks is None else [to_bytes(m) for m in masks]
    digest = hashlib.sha256()
    for array, caption, shade in zip(arrays, captions, shades):
        digest.update(json.dumps([array.shape, caption]).encode())
        digest.update(array.tobytes())
        digest.update(b"" if shade is None else shade.tobytes())
    folder = store_folder() / "pictures" / digest.hexdigest()[:24]
    mask_folder = folder / "masks"
    if not (folder / ".complete").is_file():
        (folder if masks is None else mask_folder).mkdir(parents=True, exist_ok=True)
        for number, (array, caption, shade) in enumerate(zip(arrays, captions, shades)):
            Image.fromarray(array).save(folder / f"{number:05d}.png")
            (folder / f"{number:05d}.txt").write_text(caption, encoding="utf-8")
            if shade is not None:
                Image.fromarray(shade).save(mask_folder / f"{number:05d}.png")
        (folder / ".complete").write_text("", encoding="utf-8")
    return folder, None if masks is None else mask_folder


def to_bytes(picture: torch.Tensor) -> np.ndarray:
    return picture.detach().cpu().float().mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def read_datasets(path: str) -> tuple[Datasets, list[str]]:
    """Read a dataset_config file, and its notes. Its folders are found, and confined, like those typed into a node."""
    file = user_file(path, "path")
    datasets, notes = read_dataset_config(file, {})
    folder = os.path.dirname(file)

    def found(named: str, setting: str) -> str:
        return user_path(named, in_words(f"`{setting}`", WORDS).removeprefix("subset."), folder)

    return tuple(with_paths(dataset, found) for dataset in datasets), notes


class AnimaDatasetTOML(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDatasetTOML",
            display_name="Anima Dataset (TOML)",
            category=types.DATA,
            description="A kohya dataset_config file: folders, repeats, resolutions, captions as sd-scripts reads them.",
            inputs=[types.toml_path()],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def fingerprint_inputs(cls, path: str | None = "") -> str | float:
        if path is None:
            return on_disk.unknown()
        try:
            datasets, _notes = read_datasets(path)
        except AnimaError as error:
            return str(error)
        return on_disk.state_of(*datasets)

    @classmethod
    def run(cls, path: str = "") -> io.NodeOutput:
        datasets, notes = read_datasets(path)
        looked_at(datasets, store_folder() / "cache")
        for note in notes:
            tell.note(note)
        return io.NodeOutput(datasets)


class AnimaDatasetCombine(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = io.Autogrow.TemplatePrefix(types.Dataset.Input("dataset"), prefix="dataset", min=2, max=16)
        return io.Schema(
            node_id="AnimaDatasetCombine",
            display_name="Combine Anima Datasets",
            category=types.DATA,
            description="Several datasets in one training, each with its own sizes and captions.",
            inputs=[io.Autogrow.Input("datasets", template=slots, tooltip="Datasets to train on, two or more.")],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def run(cls, datasets: dict[str, Datasets | None]) -> io.NodeOutput:
        return io.NodeOutput(tuple(config for group in datasets.values() if group for config in group))


class AnimaDatasetInspect(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDatasetInspect",
            display_name="Inspect Anima Dataset",
            category=types.DATA,
            description="Look before training: buckets, captions as they will be read, every problem; a contact sheet with "
            "marks on the pictures that have one, buckets and tags as bars, and copies side by side.",
            search_aliases=["check dataset", "dataset report", "buckets"],
            is_output_node=True,
            inputs=[
                types.Dataset.Input("dataset", tooltip="Any Anima dataset."),
                io.Int.Input(
                    "captions",
                    default=CAPTIONS_SHOWN,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="How many pictures' captions the report shows, as the first epochs train them.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="contact_sheet"),
                io.Image.Output(display_name="plan"),
                io.Image.Output(display_name="tags"),
                io.Image.Output(display_name="alike"),
            ],
        )

    @classmethod
    def run(cls, dataset: Datasets, captions: int = CAPTIONS_SHOWN) -> io.NodeOutput:
        text, drawn = inspected(dataset, store_folder() / "cache", captions)
        tell.say(text)
        return io.NodeOutput(text, *drawn, ui={"text": [text]})


NODES: list[type[io.ComfyNode]] = [
    AnimaDatasetFolder,
    AnimaDatasetImages,
    AnimaDatasetTOML,
    AnimaDatasetCombine,
    AnimaDatasetInspect,
]
