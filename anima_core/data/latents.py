"""VAE latents of every picture at its bucket's size, cached by content."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..errors import RunError
from ..models.vae import AnimaVAE
from .batches import Draw, Item
from .buckets import Size
from .cache import TensorCache, cache_key
from .folder import Picture
from .pictures import load_mask, load_picture

READERS = 4  # threads that decode pictures ahead of the VAE

Want = tuple[Picture, Size, bool]  # picture, bucket, mirrored


class LatentStore:
    """Latents by (picture bytes, bucket, flip, VAE): a change of any of these is a new entry, nothing else is."""

    def __init__(self, cache: TensorCache, vae_identity: str) -> None:
        self.cache = cache
        self.vae_identity = vae_identity
        self._masks: dict[tuple, Tensor | None] = {}

    def key(self, picture: Picture, bucket: Size, flip: bool) -> str:
        return cache_key(kind="latents", picture=picture.digest, bucket=bucket, flip=flip, vae=self.vae_identity)

    def missing(self, items: list[Item]) -> list[Want]:
        """What is not cached yet, each once."""
        found: dict[str, Want] = {}
        for item in items:
            for flip in (False, True) if item.picture.subset.flip_aug else (False,):
                key = self.key(item.picture, item.bucket, flip)
                if key not in found and not self.cache.has(key):
                    found[key] = (item.picture, item.bucket, flip)
        return list(found.values())

    def fill(
        self,
        items: list[Item],
        vae: Callable[[], AnimaVAE],
        batch_size: int,
        tile: int,
        progress: Callable[[int, int], None],
    ) -> int:
        """Encode what is missing; the VAE is only loaded when there is something. Returns how many."""
        wants = self.missing(items)
        if not wants:
            return 0
        model, done = vae(), 0
        with ThreadPoolExecutor(READERS, thread_name_prefix="anima-read") as readers:
            for batch, images in read_ahead(grouped(wants, batch_size), readers):
                latents = model.encode(torch.stack(images), tile=tile)
                for want, latent in zip(batch, latents):
                    if not latent.isfinite().all():
                        raise RunError(f"{want[0].path}: its latents are not finite; is the VAE file the right one?")
                    self.cache.put(self.key(*want), {"latents": latent.float()})
                done += len(batch)
                progress(done, len(wants))
        return len(wants)

    def latents(self, draw: Draw) -> Tensor:
        """[16, h, w], fp32."""
        picture, bucket = draw.item.picture, draw.item.bucket
        entry = self.cache.get(self.key(picture, bucket, draw.flip))
        if entry is None:
            raise RunError(f"the cached latents of {picture.path} have vanished or are damaged; start again to rebuild them")
        return entry["latents"]

    def mask(self, draw: Draw) -> Tensor | None:
        """[1, h, w] in [0, 1], or None; read once and kept."""
        picture, bucket = draw.item.picture, draw.item.bucket
        if not picture.subset.alpha_mask and picture.mask_path is None:
            return None
        key = (picture.path, bucket, draw.flip)
        if key not in self._masks:
            self._masks[key] = load_mask(picture.path, picture.mask_path, picture.subset.alpha_mask, bucket, draw.flip)
        return self._masks[key]


def grouped(wants: list[Want], batch_size: int) -> Iterator[list[Want]]:
    """Batches of pictures of one size."""
    groups: dict[Size, list[Want]] = defaultdict(list)
    for want in wants:
        groups[want[1]].append(want)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def read_ahead(batches: Iterator[list[Want]], readers: ThreadPoolExecutor) -> Iterator[tuple[list[Want], list[Tensor]]]:
    """Each batch with its pictures, the next one being decoded meanwhile."""
    waiting = None
    for batch in batches:
        futures = [readers.submit(load_picture, picture.path, bucket, flip) for picture, bucket, flip in batch]
        if waiting is not None:
            yield waiting[0], [future.result() for future in waiting[1]]
        waiting = (batch, futures)
    if waiting is not None:
        yield waiting[0], [future.result() for future in waiting[1]]
