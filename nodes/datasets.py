"""Datasets: folders, pictures from the graph, kohya's TOML; combining and looking at them."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..anima_core.compat.dataset_config import read_dataset_config
from ..anima_core.config import DatasetConfig, SubsetConfig
from ..anima_core.errors import AnimaError, FileError, SettingError
from . import types
from .inspect_dataset import contact_sheet, report
from .roots import allowed, user_path
from .runs import store_folder

Datasets = tuple[DatasetConfig, ...]


def caption_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "shuffle_caption", default=False, tooltip="Shuffle the tags anew in every epoch. For tag lists, not sentences."
        ),
        io.Int.Input(
            "keep_tokens", default=0, min=0, max=50, tooltip="So many leading tags keep their place (a trigger word: 1)."
        ),
        io.Float.Input(
            "caption_dropout_rate",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Chance that a picture trains without its caption. 0.05 to 0.1 helps guidance.",
        ),
        io.Float.Input(
            "caption_tag_dropout_rate",
            default=0.0,
            min=0.0,
            max=0.95,
            step=0.01,
            advanced=True,
            tooltip="Chance that a tag is left out.",
        ),
        io.String.Input("caption_prefix", default="", advanced=True, tooltip="Written before every caption, as it stands."),
        io.String.Input("caption_separator", default=",", advanced=True, tooltip="What separates tags."),
    ]


def size_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "resolution",
            default="1024",
            tooltip="Pixels: 1024 is a million pixels in any shape. Several, such as 768,1024: every picture at each.",
        ),
        io.Boolean.Input("flip", default=False, tooltip="Also mirrored. Not for lettering or anything asymmetric."),
        io.Int.Input("bucket_step", default=64, min=16, max=64, step=16, advanced=True, tooltip="Sides are multiples of this."),
        io.Int.Input(
            "min_side", default=256, min=64, max=2048, step=16, advanced=True, tooltip="Shortest side of a bucket, px."
        ),
        io.Boolean.Input("no_upscale", default=False, advanced=True, tooltip="Small pictures train at their own size."),
    ]


def dataset_from(subset: SubsetConfig, resolution: str, bucket_step: int, min_side: int, no_upscale: bool) -> Datasets:
    try:
        sides = [int(part) for part in resolution.replace(" ", "").split(",") if part]
    except ValueError:
        raise SettingError(f"resolution={resolution!r}: write 1024, or 768,1024 for several") from None
    return (
        DatasetConfig(
            subsets=(subset,),
            resolutions=tuple((side, side) for side in sides),
            min_bucket_reso=min(min_side, *sides),
            bucket_reso_steps=bucket_step,
            bucket_no_upscale=no_upscale,
        ),
    )


def folder_state(folder: str) -> str:
    """Names, sizes and times of all files below a folder: changes when a picture or caption does."""
    digest = hashlib.sha256()
    for root, dirs, names in os.walk(folder):
        dirs[:] = sorted(d for d in dirs if not d.startswith("."))
        for name in sorted(names):
            stat = os.stat(os.path.join(root, name))
            digest.update(f"{root}/{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def datasets_state(datasets: Datasets) -> str:
    """The settings, and the state of every folder of pictures and of masks."""
    subsets = [subset for dataset in datasets for subset in dataset.subsets]
    return repr(datasets) + "".join(folder_state(path) for s in subsets for path in (s.image_dir, s.mask_dir) if path)


class AnimaDatasetFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDatasetFolder",
            display_name="Anima Dataset (folder)",
            category=types.CATEGORY,
            description="A folder of pictures with a .txt caption beside each. Sub-folders named N_name count N times.",
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="A folder inside ComfyUI's input folder, or a full path that the server allows (see help).",
                ),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often each picture comes in an epoch."),
                *size_inputs(),
                *caption_inputs(),
                io.String.Input("caption_extension", default=".txt", advanced=True, tooltip="Ending of the caption files."),
                io.String.Input(
                    "class_tokens", default="", advanced=True, tooltip="The caption of pictures that have no file."
                ),
                io.String.Input(
                    "mask_folder", default="", advanced=True, tooltip="Grey pictures of the same names weigh the loss."
                ),
                io.Boolean.Input(
                    "alpha_mask", default=False, advanced=True, tooltip="The pictures' transparency weighs the loss."
                ),
                io.Float.Input(
                    "loss_weight",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Weight of this folder's loss.",
                ),
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", mask_folder: str = "", **others) -> str:
        named = [name for name in (folder, mask_folder) if isinstance(name, str) and name.strip()]
        try:
            return "".join(folder_state(user_path(name, "folder")) for name in named)
        except SettingError as error:  # said again, on the node, by execute
            return str(error)

    @classmethod
    def execute(
        cls, folder, repeats, resolution, flip, bucket_step, min_side, no_upscale, mask_folder, **captions
    ) -> io.NodeOutput:
        if not folder.strip():
            raise SettingError("folder='': name a folder of captioned pictures")
        path = user_path(folder, "folder")
        if not Path(path).is_dir():
            raise FileError(f"{path}: no such folder of pictures; check folder")
        masks = user_path(mask_folder, "mask_folder") if mask_folder.strip() else ""
        subset = SubsetConfig(image_dir=path, num_repeats=repeats, flip_aug=flip, mask_dir=masks, **captions)
        return io.NodeOutput(dataset_from(subset, resolution, bucket_step, min_side, no_upscale))


class AnimaDatasetImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDatasetImages",
            display_name="Anima Dataset (images)",
            category=types.CATEGORY,
            description="Pictures from the graph: batches or lists of any sizes, with one caption for all or one for each.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="An IMAGE batch, or a list of pictures of different sizes."),
                io.String.Input(
                    "captions", multiline=True, default="", tooltip="One caption for all, or a list as long as the pictures'."
                ),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often each picture comes in an epoch."),
                *size_inputs(),
                *caption_inputs(),
                io.Mask.Input("masks", optional=True, tooltip="White counts, black does not. One for all, or one for each."),
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def execute(cls, images, captions, masks=None, **settings) -> io.NodeOutput:
        plain = {name: value[0] for name, value in settings.items()}
        pictures = [picture for batch in images for picture in batch]
        texts = matched(captions, len(pictures), "captions")
        shades = None if masks is None else matched([m for batch in masks for m in as_masks(batch)], len(pictures), "masks")
        folder, mask_folder = write_pictures(pictures, texts, shades)
        size = {name: plain.pop(name) for name in ("resolution", "bucket_step", "min_side", "no_upscale")}
        subset = SubsetConfig(
            image_dir=str(folder),
            mask_dir=str(mask_folder or ""),
            num_repeats=plain.pop("repeats"),
            flip_aug=plain.pop("flip"),
            **plain,
        )
        return io.NodeOutput(dataset_from(subset, **size))


def as_masks(batch: torch.Tensor) -> list[torch.Tensor]:
    return list(batch) if batch.ndim == 3 else [batch]


def matched(values: list, count: int, name: str) -> list:
    """One for each picture: as given, or the only one repeated."""
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise SettingError(f"{name}: {len(values)} for {count} pictures; give one, or one for each")
    return values


def write_pictures(pictures: list, captions: list[str], masks: list | None) -> tuple[Path, Path | None]:
    """Store pictures under a folder named by their content: the core reads folders, and finds its caches again."""
    arrays = [to_bytes(p) for p in pictures]
    shades = [None] * len(arrays) if masks is None else [to_bytes(m) for m in masks]
    digest = hashlib.sha256()
    for array, caption, shade in zip(arrays, captions, shades):
        digest.update(json.dumps([array.shape, caption]).encode())
        digest.update(array.tobytes())
        digest.update(b"" if shade is None else shade.tobytes())
    folder = store_folder() / "pictures" / digest.hexdigest()[:24]
    mask_folder = folder / "masks" if masks is not None else None
    if not (folder / ".complete").is_file():
        (mask_folder or folder).mkdir(parents=True, exist_ok=True)
        for number, (array, caption, shade) in enumerate(zip(arrays, captions, shades)):
            Image.fromarray(array).save(folder / f"{number:05d}.png")
            (folder / f"{number:05d}.txt").write_text(caption, encoding="utf-8")
            if shade is not None:
                Image.fromarray(shade).save(mask_folder / f"{number:05d}.png")
        (folder / ".complete").write_text("", encoding="utf-8")
    return folder, mask_folder


def to_bytes(picture: torch.Tensor) -> np.ndarray:
    return picture.detach().cpu().float().mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def read_datasets(path: str) -> tuple[Datasets, list[str]]:
    """A dataset_config file, and its notes. Its folders are confined like those that are typed into a node."""
    datasets, notes = read_dataset_config(user_path(path, "path"), {})
    for subset in (subset for dataset in datasets for subset in dataset.subsets):
        allowed(subset.image_dir, "image_dir")
        if subset.mask_dir:
            allowed(subset.mask_dir, "conditioning_data_dir")
    return datasets, notes


class AnimaDatasetTOML(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDatasetTOML",
            display_name="Anima Dataset (TOML)",
            category=types.CATEGORY,
            description="A kohya dataset_config file: folders, repeats, resolutions, captions as sd-scripts reads them.",
            inputs=[
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A file inside ComfyUI's input folder, or a full path that the server allows (see help).",
                )
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def fingerprint_inputs(cls, path: str = "") -> str:
        try:
            datasets, _notes = read_datasets(path)
        except AnimaError as error:
            return str(error)
        return datasets_state(datasets)

    @classmethod
    def execute(cls, path: str) -> io.NodeOutput:
        datasets, notes = read_datasets(path)
        for note in notes:
            print(f"[Anima Trainer] {note}")
        return io.NodeOutput(datasets)


class AnimaDatasetCombine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = io.Autogrow.TemplatePrefix(types.Dataset.Input("dataset"), prefix="dataset", min=2, max=16)
        return io.Schema(
            node_id="AnimaDatasetCombine",
            display_name="Combine Anima Datasets",
            category=types.CATEGORY,
            description="Several datasets in one training, each with its own sizes and captions.",
            inputs=[io.Autogrow.Input("datasets", template=slots)],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def execute(cls, datasets: dict) -> io.NodeOutput:
        return io.NodeOutput(tuple(config for group in datasets.values() if group for config in group))


class AnimaDatasetInspect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDatasetInspect",
            display_name="Inspect Anima Dataset",
            category=types.CATEGORY,
            description="Look before training: buckets, captions as they will be read, every problem, a contact sheet.",
            is_output_node=True,
            inputs=[types.Dataset.Input("dataset", tooltip="Any Anima dataset.")],
            outputs=[io.String.Output(display_name="report"), io.Image.Output(display_name="contact_sheet")],
        )

    @classmethod
    def execute(cls, dataset: Datasets) -> io.NodeOutput:
        text, pictures = report(dataset, store_folder() / "cache")
        return io.NodeOutput(text, contact_sheet(pictures), ui={"text": [text]})
