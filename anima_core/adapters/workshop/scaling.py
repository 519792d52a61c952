"""An adapter at another strength, in all or in some blocks, without a change of its type or rank."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import SettingError
from ..keys import Layers
from ..recognise import DORA, read_layers, type_name, type_of
from .block_weights import BlockWeights, check_weight
from .loaded import LoadedAdapter, counted

SIGNED = ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a")  # a factor of each type
DIFFERENCES = frozenset({"w_norm", "b_norm", "diff", "diff_b"})  # are added to a weight as they are


def scale(adapter: LoadedAdapter, strength: float, weights: BlockWeights | None = None) -> LoadedAdapter:
    """Return an adapter times a strength, and times each block's weight. Layers of 0 are left out.

    Raises SettingError for a layer that cannot be scaled.
    """
    check_weight(strength)
    weights, layers, counts = weights or BlockWeights(), Layers(), Counter[str]()
    for name, tensors in adapter.layers.items():
        factor = strength * weights.of(name)
        counts["are left out: their weight is 0"] += factor == 0
        if factor != 0:
            layers[name] = scaled(name, tensors, factor)
    blocks = {str(number): value for number, value in weights.blocks.items() if value != 1}
    return adapter.done("scale", layers, counted(+counts), strength=strength, blocks=blocks)


def scaled(name: str, tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Return a layer times a factor that is not 0: by its alpha, which is exact, where that counts.

    Raises SettingError for a DoRA, and for a type that is not known.
    """
    if factor == 1:
        return dict(tensors)
    kind = type_of(tensors)
    if DORA in tensors or (kind is None and not tensors.keys() <= DIFFERENCES | {"alpha"}):
        raise SettingError(f"{name}: a {type_name(tensors) or 'layer of an unknown type'} {why_not(DORA in tensors)}")
    if kind is None:
        return {key: times(tensor, factor) for key, tensor in tensors.items()}
    found, sign = dict(tensors), next(key for key in SIGNED if key in tensors)
    if read_layers(kind, [tensors]).sizes[0].rank is None:  # its alpha means nothing
        return found | {sign: times(tensors[sign], factor)}
    found["alpha"] = abs(factor) * tensors["alpha"].double().float()
    return found if factor > 0 else found | {sign: -tensors[sign]}


def why_not(dora: bool) -> str:
    if dora:
        return "has lengths of columns, which no factor scales; set its strength where it is applied, as in Apply Anima Adapter"
    return "cannot be scaled; set its strength where it is applied"


def times(tensor: Tensor, factor: float) -> Tensor:
    """Multiply in fp32, and return the tensor's own dtype."""
    return (tensor.to(torch.float32) * factor).to(tensor.dtype)
