"""What LyCORIS' words mean that no setting of ours is named after."""

from ..errors import SettingError
from .named_values import boolean

LYCORIS = "lycoris.kohya"  # a --network_module whose type stands in --network_args algo
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}  # -> our types
PRESETS = {"": "attn+mlp", "attn-mlp": "attn+mlp", "attn-only": "attn"}  # -> network.targets


def check_side(own: dict[str, str], notes: list[str]) -> None:
    """Refuse a DoRA of the outputs' lengths; LyCORIS trains these when nothing is said, which is told."""
    why = "ComfyUI divides lengths of outputs by the base weight's norm, which is another model than the trained one"
    if boolean(own.get("wd_on_output", "false"), "wd_on_output"):
        raise SettingError(f"network_args: wd_on_output={own['wd_on_output']}: {why}; use wd_on_output=False")
    if "wd_on_output" not in own:
        notes.append(f"network_args dora_wd: the lengths are those of the inputs, as with wd_on_output=False: {why}")


def preset_targets(own: dict[str, str], notes: list[str]) -> str:
    """Read LyCORIS' word for the layers. Its other presets name layers by classes that Anima does not have."""
    preset = own.get("preset", "")
    if preset not in PRESETS:
        notes.append(f"network_args preset has no effect: {preset} names no layers of Anima; they are those of targets")
    return PRESETS.get(preset, PRESETS[""])
