"""VAE latents and loss masks of every picture at its bucket's size, cached by content: training opens no picture."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain, islice, product
from pathlib import Path

import torch
from torch import Tensor

from .. import files
from ..errors import FileError, RunError
from ..models.vae import AnimaVAE
from .ahead import WORKERS, ahead
from .batches import Draw, Item
from .buckets import Size
from .cache import TensorCache, cache_key, everything
from .crops import Corner, Crops
from .folder import Picture
from .pictures import load_mask, load_picture

DECODING = 8  # bytes for each pixel of a file while it becomes a picture: RGBA, and the copy that a conversion makes
WHOLE = 1536  # px: the side of a tile for `vae_tile` = 0, when pictures are to share a batch
DECODED = 12  # bytes for each pixel of a bucket

Want = tuple[Picture, Size, bool, Corner | None]  # picture, bucket, mirrored, where it is cropped but for the centre
Progress = Callable[[int, int], None]


class LatentStore:
    """Latents by (picture bytes, bucket, flip, crop, VAE, tile): a change of any of these is a new entry, nothing else is.

    tile: px, see `AnimaVAE.encode`. reload: loads a VAE for an entry that is found damaged while training. crops: where
    pictures are cropped. notes: what was encoded again so.
    """

    def __init__(
        self,
        cache: TensorCache,
        vae_identity: str,
        tile: int,
        reload: Callable[[], AnimaVAE] | None = None,
        crops: Crops | None = None,
    ) -> None:
        self.cache = cache
        self.vae_identity = vae_identity
        self.tile = tile
        self.crops = crops or Crops()
        self.notes: list[str] = []
        self._reload = None if reload is None else functools.cache(reload)
        self._mask_digests: dict[Path, str] = {}

    def key(self, picture: Picture, bucket: Size, flip: bool, corner: Corner | None = None) -> str:
        """Return the cache key. The tile counts only where the picture is encoded in tiles, the crop where it is drawn."""
        own = ({"tile": self.tile} if 0 < self.tile < max(bucket) else {}) | cropped(corner)
        return cache_key(kind="latents", picture=picture.digest, bucket=bucket, flip=flip, vae=self.vae_identity, **own)

    def missing(self, items: list[Item], mine: Callable[[str], bool] = everything) -> list[Want]:
        """List what is not cached yet, each once. mine: which keys are this process' share."""
        return list(self._wanted(items, self.key, mine).values())

    def _wanted(
        self, items: list[Item], key_of: Callable[[Picture, Size, bool, Corner | None], str], mine: Callable[[str], bool]
    ) -> dict[str, Want]:
        found: dict[str, Want] = {}
        for item in items:
            for flip, corner in product(flips(item.picture), self.crops.corners(item)):
                key = key_of(item.picture, item.bucket, flip, corner)
                if key not in found and mine(key) and not self.cache.has(key):
                    found[key] = (item.picture, item.bucket, flip, corner)
        return found

    def _want(self, draw: Draw) -> Want:
        return draw.item.picture, draw.item.bucket, draw.flip, self.crops.corner(draw.item, draw.epoch)

    def fill(
        self,
        items: list[Item],
        vae: Callable[[], AnimaVAE],
        batch_size: int,
        progress: Progress,
        mine: Callable[[str], bool] = everything,
        workers: int = WORKERS,
    ) -> int:
        """Encode what is missing; the VAE is only loaded when there is something. Return how many. Raises RunError.

        batch_size: pictures at once; 0: so many of a size that they take no more memory than one tile.
        workers: threads that decode and resize pictures while the VAE encodes; 0 does one after the other.
        """
        wants = self.missing(items, mine)
        if not wants:
            return 0
        model, done = vae(), 0
        batches = list(grouped(wants, lambda size: batch_size or max(1, (self.tile or WHOLE) ** 2 // (size[0] * size[1]))))
        with closing(ahead(read, chain.from_iterable(batches), room, workers)) as pictures:
            for batch in batches:
                images = torch.stack(list(islice(pictures, len(batch))))
                self._keep(batch, model.encode(images, tile=self.tile))
                done += len(batch)
                progress(done, len(wants))
        return len(wants)

    def _keep(self, batch: list[Want], latents: Tensor) -> None:
        """Cache a batch of latents. Raises RunError for those that are not finite."""
        for want, latent in zip(batch, latents.float().cpu()):  # the one moment that waits for the device
            if not latent.isfinite().all():
                raise RunError(f"{want[0].path}: its latents are not finite; use qwen_image_vae.safetensors as the VAE")
            self.cache.put(self.key(*want), {"latents": latent})

    def fill_masks(
        self,
        items: list[Item],
        progress: Progress,
        mine: Callable[[str], bool] = everything,
        workers: int = WORKERS,
    ) -> None:
        """Cache the masks that are missing; no VAE is needed. workers: as in `fill`."""
        wants = self._wanted([item for item in items if has_mask(item.picture)], self.mask_key, mine)
        with closing(ahead(lambda want: read_mask(*want), wants.values(), room, workers)) as masks:
            for done, (key, mask) in enumerate(zip(wants, masks), start=1):
                self.cache.put(key, {"mask": mask})
                if done % 64 == 0 or done == len(wants):
                    progress(done, len(wants))

    def latents(self, draw: Draw) -> Tensor:
        """Return [16, h, w], fp32."""
        want = self._want(draw)
        entry = self.cache.get(self.key(*want))
        return self.encode_again(want) if entry is None else entry["latents"]

    def encode_again(self, want: Want) -> Tensor:
        """Encode what has vanished from the cache, or was damaged there. Raises RunError."""
        gone = f"the cached latents of {want[0].path} have vanished or are damaged"
        if self._reload is None:
            raise RunError(f"{gone}; start again to encode them again")
        try:
            image = read(want)
        except FileError as error:
            raise RunError(f"{gone}, and cannot be encoded again: {error}") from None
        latents = self._reload().encode(image[None], tile=self.tile)[0].float().cpu()
        self.cache.put(self.key(*want), {"latents": latents})
        self.notes.append(f"{gone}; encoded again")
        return latents

    def mask(self, draw: Draw) -> Tensor | None:
        """Return [1, h, w] in [0, 1], or None where the whole picture counts."""
        want = self._want(draw)
        if not has_mask(want[0]):
            return None
        entry = self.cache.get(self.mask_key(*want))
        if entry is None:
            entry = {"mask": read_mask(*want)}
            self.cache.put(self.mask_key(*want), entry)
            self.notes.append(f"the cached mask of {want[0].path} has vanished or is damaged; read again")
        return entry["mask"] if entry["mask"].numel() else None

    def mask_key(self, picture: Picture, bucket: Size, flip: bool, corner: Corner | None = None) -> str:
        source, own = picture.digest, picture.mask_path is None
        if picture.mask_path is not None:
            if picture.mask_path not in self._mask_digests:
                self._mask_digests[picture.mask_path] = files.digest(picture.mask_path)
            source = self._mask_digests[picture.mask_path]
        return cache_key(kind="mask", source=source, own=own, bucket=bucket, flip=flip, **cropped(corner))


def cropped(corner: Corner | None) -> dict[str, Corner]:
    return {} if corner is None else {"crop": corner}


def flips(picture: Picture) -> tuple[bool, ...]:
    return (False, True) if picture.subset.flip_aug else (False,)


def has_mask(picture: Picture) -> bool:
    return picture.mask_path is not None or picture.subset.alpha_mask


def read_mask(picture: Picture, bucket: Size, flip: bool, corner: Corner | None = None) -> Tensor:
    """Return [1, h, w], or an empty tensor for a picture without transparency."""
    mask = load_mask(picture.path, picture.mask_path, picture.subset.alpha_mask, bucket, flip, corner)
    return torch.empty(0) if mask is None else mask


def grouped(wants: list[Want], at_once: Callable[[Size], int]) -> Iterator[list[Want]]:
    """Yield batches of pictures of one size."""
    groups: dict[Size, list[Want]] = defaultdict(list)
    for want in wants:
        groups[want[1]].append(want)
    for size, group in groups.items():
        for start in range(0, len(group), at_once(size)):
            yield group[start : start + at_once(size)]


def read(want: Want) -> Tensor:
    """Return a picture as [3, H, W] fp32 in [-1, 1]. Raises FileError."""
    picture, bucket, flip, corner = want
    return load_picture(picture.path, bucket, flip, picture.digest, corner)


def room(want: Want) -> int:
    """Return the bytes that reading a picture takes at most."""
    picture, bucket, *_ = want
    return DECODING * picture.size[0] * picture.size[1] + DECODED * bucket[0] * bucket[1]
