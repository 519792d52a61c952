"""Random numbers without state: every draw follows from (seed, purpose, position), so a checkpoint stores no generator."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Two hashes, because the purposes began with either, and another hash would change the numbers of every run.
BLAKE2B_PURPOSES = ("order", "draw", "dropout")


def seed_of(seed: int, purpose: str, *position: int | str) -> int:
    """Return a 63-bit number that depends on all arguments and on nothing else."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, position))}".encode()
    hashed = hashlib.blake2b(text, digest_size=8) if purpose in BLAKE2B_PURPOSES else hashlib.sha256(text)
    return int.from_bytes(hashed.digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *position: int | str, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """Return a generator seeded by the arguments. On the CPU it draws the same on every machine, after every resume.

    The meta device, where nothing is drawn, has none of its own.
    """
    import torch  # here: the check of a folder, which draws numbers alone, starts without it

    where = "cpu" if torch.device(device).type == "meta" else device
    return torch.Generator(where).manual_seed(seed_of(seed, purpose, *position))
