"""Which type of adapter a layer of a file is, by the names of its tensors; also those types that are not trained here."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..errors import SettingError
from .adapter_type import AdapterType, InFile
from .dora import SCALE as DORA
from .types import ADAPTER_TYPES

NORM = "norm"

# Type -> the names of a layer's tensors, all or some of them. The first that covers a layer's names is its type.
OTHER_TYPES: tuple[tuple[str, frozenset[str]], ...] = (
    ("loha with core tensors", frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"})),
    ("lora with a middle factor", frozenset({"lora_down.weight", "lora_mid.weight", "lora_up.weight"})),
    (
        "lokr with a core tensor",
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
    ),
    (
        "t-lokr (lokr less its start)",
        frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_w1_init", "lokr_w2_a_init", "lokr_w2_b_init"}),
    ),
    (
        "ortho-lora (lora less its start)",
        frozenset({"q_layer.weight", "p_layer.weight", "q_layer_init.weight", "p_layer_init.weight", "lambda_layer"}),
    ),
    (
        "hydra (several lora_ups and a router)",
        frozenset({"lora_down.weight", "lora_up_weight", "lora_ups", "router.weight", "router.bias", "inv_scale"})
        | {f"lora_ups.{number}.weight" for number in range(64)},
    ),
    ("oft", frozenset({"oft_blocks", "oft_diag", "rescale", "oft_R", "oft_R.weight"})),
    ("glora", frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"})),
    ("ia3", frozenset({"weight", "on_input", "ia3_l"})),
    ("vera", frozenset({"vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"})),
    (NORM, frozenset({"w_norm", "b_norm"})),
    ("difference of weights", frozenset({"diff", "diff_b"})),
    ("replaced weights", frozenset({"set_weight"})),
)
SIDE_TENSORS = {"alpha", DORA, "reshape_weight"}  # beside a type's own
RANKS = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # the first that a layer has is as high as its rank


def type_of(tensors: Iterable[str]) -> AdapterType | None:
    """Return the type of a layer by the names of its tensors, a DoRA's within; None for a norm, and for a type not ours."""
    names = set(tensors) - {"alpha", DORA}
    return next((kind for kind in ADAPTER_TYPES if names and names <= kind.tensors), None)


def read_layers(kind: AdapterType, layers: Sequence[Mapping[str, Tensor]]) -> InFile:
    """Return what layers of a file are, as their type reads them. Raises SettingError for tensors that do not fit."""
    try:
        return kind.read(layers)
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SettingError(
            f"adapter: the tensors of a {kind.name} do not fit one another ({reason}); choose a whole file"
        ) from None


def type_name(tensors: Iterable[str]) -> str:
    """Name the type of a layer, ours or another; empty for one that is not known."""
    names = set(tensors)
    plain = names - SIDE_TENSORS
    known = [(kind.name, kind.tensors) for kind in ADAPTER_TYPES]
    name = next((name for name, own in (*known, *OTHER_TYPES) if plain and plain <= own and plain != {"weight"}), "")
    return f"dora ({name})" if name and DORA in names else name
