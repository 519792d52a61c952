"""What --network_weights says of the network: each setting that no flag says is the file's."""

from pathlib import Path
from typing import Any

from ..errors import AnimaError, SettingError

LAYER_ARGS = {"targets", "target_modules", "include_patterns", "exclude_patterns", "train_llm_adapter", "preset"}
SAID_BY = {  # a setting that a file of weights gives -> flags, and names within --network_args, that say it themselves
    **dict.fromkeys(("targets", "include"), LAYER_ARGS),
    "type": {"network_module"},
    "rank": {"network_dim"},
    "ranks": {"network_dim", "network_reg_dims"},
    "alpha": {"network_alpha"},
    "alphas": {"network_alpha", "network_reg_alphas"},
    "train_norm": {"train_norm"},
    "factor": {"lokr_factor", "factor"},
    "decompose_both": {"lokr_decompose_both", "decompose_both"},
    "dora": {"dora_wd"},
}

Values = dict[str, Any]


def network_of_weights(values: Values, said_names: set[str], notes: list[str]) -> Values:
    """Read --network_weights: the settings that make the network of that file, but for those that are said; note them.

    said_names: of flags and of --network_args. --dim_from_weights takes rank and alpha from the file even when they are.
    """
    from ..adapters.from_file import network_of, said

    path = values["network_weights"]
    if not path:
        if values["dim_from_weights"]:
            raise SettingError("dim_from_weights: needs --network_weights")
        return {}
    if values["dim_from_weights"]:
        said_names = said_names - {"network_dim", "network_alpha"}
    given = network_of(path, blocks_of(values["anima_transformer"], values["llm_adapter"]))
    found = {name: value for name, value in given.items() if not said_names & SAID_BY.get(name, set())}
    if found:
        notes.append(f"network_weights: taken from {Path(path).name}: {said(found)}")
    return found


def blocks_of(transformer: str, llm_adapter: str) -> int:
    """Return how many blocks a transformer's file has; 0 where that cannot be told, which is refused later."""
    from ..models.transformer import check_transformer

    try:
        return check_transformer(transformer, llm_adapter).blocks
    except AnimaError:
        return 0
