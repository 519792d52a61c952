"""One picture, or its mask, as a tensor of its bucket's size."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import FileError
from .buckets import Size, cover
from .crops import Corner
from .picture_files import has_alpha, open_picture


def fit(
    image: Image.Image,
    bucket: Size,
    flip: bool,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
    corner: Corner | None = None,
) -> Image.Image:
    """Resize to cover the bucket, crop at a corner (left, top) or the centre, mirror."""
    resized, box = cover(image.size, bucket)
    if image.size != resized:
        image = image.resize(resized, resample)
    if corner is not None:  # a mask of nearly the picture's shape may have less room
        left, top = min(corner[0], resized[0] - bucket[0]), min(corner[1], resized[1] - bucket[1])
        box = left, top, left + bucket[0], top + bucket[1]
    image = image.crop(box)
    return ImageOps.mirror(image) if flip else image


def load_picture(path: Path, bucket: Size, flip: bool = False, digest: str = "", corner: Corner | None = None) -> Tensor:
    """Return a picture as [3, H, W] fp32 in [-1, 1]. Raises FileError."""
    array = np.array(fit(open_picture(path, digest), bucket, flip, corner=corner), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).div_(127.5).sub_(1)


def load_mask(
    path: Path, mask_path: Path | None, alpha: bool, bucket: Size, flip: bool = False, corner: Corner | None = None
) -> Tensor | None:
    """Return loss weights [1, H/8, W/8] in [0, 1]: of a grey picture, or the picture's alpha channel; None without either."""
    grey = grey_mask(path, mask_path, alpha)
    if grey is None:
        return None
    grey = fit(grey, bucket, flip, Image.Resampling.BILINEAR, corner)
    array = np.array(grey, dtype=np.float32) / 255
    return torch.nn.functional.avg_pool2d(torch.from_numpy(array)[None, None], 8)[0]


def grey_mask(path: Path, mask_path: Path | None, alpha: bool) -> Image.Image | None:
    source = mask_path or (path if alpha else None)
    if source is None:
        return None
    try:
        with Image.open(source) as file:
            image = ImageOps.exif_transpose(file)
            if mask_path is not None:
                return image.convert("L")
            return image.convert("RGBA").getchannel("A") if has_alpha(image) else None
    except Exception as error:
        raise FileError(f"{source}: cannot be read as a mask ({error}); repair or remove it") from None
