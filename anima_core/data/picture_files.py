"""Picture files: what is in one, whether it is whole, and its pixels as RGB. No torch: scanning starts at once."""

import base64
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ..errors import FileError
from .buckets import Size

WHITE = (255, 255, 255)
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


HUGE = 178_956_970  # pixels: where Pillow refuses, whatever another program in this process has set its limit to
SMALLEST = 16  # px: one token of the transformer
ROTATION = 0x0112  # EXIF orientation; 5 to 8 lie on their side
SEPARATOR = "\0"  # between the fields of what was found in a file: decoded captions never hold one


@dataclass(frozen=True)
class Facts:
    """What scanning a picture file found. size: (width, height) after the EXIF rotation."""

    digest: str  # SHA-256 of the file
    size: Size
    problem: str = ""  # why it cannot be trained on
    traits: tuple[str, ...] = ()  # what its owner may not expect: kinds of conversion, nothing but black, nothing to see

    def text(self) -> str:
        """Write as one line for the index of files."""
        return SEPARATOR.join([self.digest, *map(str, self.size), self.problem, ",".join(self.traits)])

    @classmethod
    def of(cls, text: str) -> "Facts":
        """Read back what `text` wrote."""
        digest, width, height, problem, traits = text.split(SEPARATOR)
        return cls(digest, (int(width), int(height)), problem, tuple(traits.split(",")) if traits else ())


def scan_picture(path: Path) -> Facts:
    """Read a picture once, whole: hash it, and decode it to the last row."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return Facts("", (0, 0), f"unreadable: {error.strerror}")
    digest = hashlib.sha256(data).hexdigest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                size = upright(image)
                problem = size_problem(size)
                if not problem:
                    image.draft(image.mode, (1, 1))  # a JPEG is read to its end as well at an eighth of its size
                    image.load()
                return Facts(digest, size, problem, () if problem else tuple(traits_of(image)))
    except Image.DecompressionBombError:
        return Facts(digest, (0, 0), "huge")
    except Exception as error:  # Pillow raises many kinds for damaged files
        return Facts(digest, (0, 0), "truncated" if is_truncation(error) else "unreadable")


def size_problem(size: Size) -> str:
    if size[0] * size[1] > HUGE:
        return "huge"
    return "tiny" if min(size) < SMALLEST else ""


def is_truncation(error: Exception) -> bool:
    return isinstance(error, EOFError) or "truncated" in str(error).lower()


def traits_of(image: Image.Image) -> Iterator[str]:
    """Yield the traits of a picture that is loaded."""
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's JPEG with a second view in it
        yield "animated"
    if image.mode == "CMYK":
        yield "CMYK"
    elif image.mode in SIXTEEN_BIT:
        yield "16-bit"
    elif image.mode in ("P", "PA"):
        yield "palette"
    elif image.mode in ("L", "LA", "1"):
        yield "grey"
    if is_black(image):
        yield "black"
    if has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        lowest, _ = alpha.getextrema()
        if isinstance(lowest, int | float) and lowest < 255:
            yield "transparent"
        if alpha.getextrema() == (0, 0):
            yield "invisible"


def is_black(image: Image.Image) -> bool:
    """Tell whether a picture, read as a mask is, has nothing but zeros."""
    try:
        return image.convert("L").getextrema() == (0, 0)
    except ValueError:  # a mode without a grey of its own, which no mask has
        return False


@contextmanager
def whole_files_only() -> Iterator[None]:
    """Let Pillow refuse truncated pictures: another program in this process may have told it to fill them with grey."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def open_picture(path: Path, digest: str = "") -> Image.Image:
    """Decode, apply the EXIF rotation, put transparency on white -> RGB. Raises FileError that names the file.

    digest: the SHA-256 that the file had when it was scanned; another picture under its name is refused.
    """
    try:
        data = path.read_bytes()
        if digest and hashlib.sha256(data).hexdigest() != digest:
            raise FileError(f"{path}: has changed since it was scanned; start again")
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"{path}: cannot be read as a picture ({error}); repair or remove it") from None


def thumbnail(path: Path, side: int) -> Image.Image:
    """Return a picture as RGB with no side above `side`; a JPEG is decoded no larger than that takes. Raises FileError."""
    try:
        with Image.open(path) as image:
            if size_problem(image.size) == "huge":
                raise ValueError("it is huge")
            image.draft("RGB", (side, side))
            small = to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        raise FileError(f"{path}: cannot be read as a picture ({error}); repair or remove it") from None
    small.thumbnail((side, side))
    return small


def small_jpeg(path: Path, side: int) -> bytes:
    """Return a picture as a JPEG with no side above `side`, for a page. Raises FileError."""
    data = io.BytesIO()
    thumbnail(path, side).save(data, "JPEG", quality=85)
    return data.getvalue()


def data_url(path: Path, side: int = 256) -> str:
    """Return a picture as a text that carries it, a JPEG with no side above `side`. Raises FileError."""
    return f"data:image/jpeg;base64,{base64.b64encode(small_jpeg(path, side)).decode()}"


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT:  # a plain conversion would clip at 255
        values = np.asarray(image, dtype=np.float32)
        scale = 255 / 65535 if values.max(initial=0) > 255 else 1.0
        image = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    if has_alpha(image):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*WHITE, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def upright(image: Image.Image) -> Size:
    """Return (width, height) after the EXIF rotation, from the header alone."""
    return image.size[::-1] if image.getexif().get(ROTATION, 1) >= 5 else image.size
