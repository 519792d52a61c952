"""The socket types of this pack, and the light handles that travel through them."""

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

CATEGORY = "Anima Trainer"
LOADERS = f"{CATEGORY}/loaders"
DATA = f"{CATEGORY}/data"
NETWORK = f"{CATEGORY}/network"
TRAINING = f"{CATEGORY}/training"
ADAPTER = f"{CATEGORY}/adapter"
WORKSHOP = f"{CATEGORY}/workshop"

Transformer = io.Custom("ANIMA_TRANSFORMER")
VAE = io.Custom("ANIMA_VAE")
Qwen = io.Custom("ANIMA_QWEN")
T5Tokenizer = io.Custom("ANIMA_T5_TOKENIZER")
Dataset = io.Custom("ANIMA_DATASET")  # tuple[DatasetConfig, ...]
Captions = io.Custom("ANIMA_CAPTIONS")  # dict[str, Any], fields of SubsetConfig
Network = io.Custom("ANIMA_NETWORK")  # NetworkConfig
Optimizer = io.Custom("ANIMA_OPTIMIZER")  # OptimizerConfig
Samples = io.Custom("ANIMA_SAMPLES")  # SampleConfig
Metadata = io.Custom("ANIMA_METADATA")  # MetadataConfig
HeldOut = io.Custom("ANIMA_HELD_OUT")  # HeldOutConfig
Prior = io.Custom("ANIMA_PRIOR")  # PriorConfig
Flow = io.Custom("ANIMA_FLOW")  # dict[str, Any], fields of FlowConfig
Speed = io.Custom("ANIMA_SPEED")  # dict[str, Any], fields of TrainConfig
LoraModel = io.Custom("LORA_MODEL")  # ComfyUI's own
LossMap = io.Custom("LOSS_MAP")  # ComfyUI's own

LoraState = dict[str, Tensor]  # what a LORA_MODEL holds


@dataclass(frozen=True)
class ModelFile:
    """A model's path, its header checked; never its weights, so that ComfyUI's cache holds nothing large."""

    path: str
    dtype: str = "auto"
    llm_adapter: str = ""


def caption_rules() -> io.Input:
    """Make the input of the rules for captions."""
    return Captions.Input(
        "caption_rules", optional=True, tooltip="A trigger word, renames, chances by category: from Anima Caption Rules."
    )


def toml_path() -> io.String.Input:
    """Make the input of a TOML file."""
    return io.String.Input(
        "path",
        default="",
        optional=True,
        tooltip="A file inside ComfyUI's input folder or of an earlier run, or a full path that the server allows.",
    )


def picture_folder() -> io.String.Input:
    """Make the input of a folder of pictures."""
    return io.String.Input(
        "folder",
        default="",
        optional=True,
        tooltip="A folder inside ComfyUI's input folder, or a full path that the server allows.",
    )
