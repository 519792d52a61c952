"""The modulation of all blocks from two stacked products, where its layers are frozen and plain."""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.transformer import AnimaTransformer, Block, Modulation


class ModulationTable:
    """Does what `models.transformer.modulations` does, for all blocks of a model at once.

    The layers' weights become views of the two stacks, so that they are in memory once.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        pairs = [linears(layers) for block in blocks for layers in block.adaln()]
        self.down, self.up = stacked([pair[0] for pair in pairs]), stacked([pair[1] for pair in pairs])  # [M, r, D], [M, 3D, r]

    def __call__(self, blocks: Iterable[Block], emb: Tensor, adaln: Tensor) -> Iterator[Modulation]:
        """Map emb [B, 1, D], adaln [B, 1, 3D] -> of each block three of [B, 1, 3D]."""
        inner = F.linear(F.silu(emb[:, 0]), self.down.flatten(0, 1))
        inner = inner.unflatten(-1, self.down.shape[:2]).transpose(0, 1)  # [M, B, r]
        shared = adaln[:, 0].expand(len(self.up), -1, -1)
        table = torch.baddbmm(shared, inner, self.up.transpose(1, 2)).unsqueeze(2)  # [M, B, 1, 3D]
        for index, _ in enumerate(blocks):
            yield table[3 * index], table[3 * index + 1], table[3 * index + 2]


def stacked(layers: list[nn.Linear]) -> Tensor:
    """Stack the weights of layers of one shape, [n, out, in], and let each layer's be a view of it."""
    stack = torch.stack([layer.weight.detach() for layer in layers])
    for layer, weight in zip(layers, stack):
        layer.weight.data = weight
    return stack


def linears(layers: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    assert isinstance(layers, nn.Sequential)
    first, second = layers[1], layers[2]
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    return first, second


def can_stack(model: AnimaTransformer) -> bool:
    """Tell whether the modulation is frozen, and its layers are plain ones of floats."""
    blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
    modules = [module for block in blocks for layers in block.adaln() for module in layers.modules()]
    leaves = [module for module in modules if not isinstance(module, (nn.Sequential, nn.SiLU))]
    return all(type(leaf) is nn.Linear and not leaf.weight.requires_grad for leaf in leaves)
