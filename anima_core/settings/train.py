"""A training run, whole: its models, and everything that is set for it.

The classes are frozen and check themselves when they are made, so a config that exists is a valid one. Nothing here opens a
file: what needs the disk is checked by `anima_core.training.preflight`. An empty string, an empty tuple or 0 means "not
set", because TOML, which freezes a run, has no null.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SettingError
from ..files import MAX_NAME_BYTES, is_plain_name
from .data import DatasetConfig
from .flow import FlowConfig
from .held_out import HeldOutConfig
from .metadata import MetadataConfig
from .network import NetworkConfig
from .optimizer import OPTIMIZERS, OptimizerConfig
from .prior import PriorConfig
from .samples import SampleConfig
from .setting import check, require, setting

DTYPES = ("bf16", "fp16", "fp32")
KEY_FORMATS = ("diffusion_model", "lora_unet")
MEMORY = ("auto", "recompute", "offload", "keep")
ATTENTION = ("sdpa", "auto", "cudnn", "flash", "efficient", "chunked", "math", "flash_attn", "xformers", "sage")
ATTENTION_PACKAGES = {"flash_attn": "flash_attn", "xformers": "xformers", "sage": "sageattention"}  # -> what is imported


@dataclass(frozen=True)
class ModelConfig:
    """The model files. Paths; nothing is opened here. One checkpoint or diffusers folder may be all of them."""

    transformer: str = setting(
        help="An Anima checkpoint (.safetensors or .gguf), quantised or not, an all-in-one checkpoint, or a diffusers folder.",
        path="read",
        resume="fixed",
    )
    vae: str = setting(
        help="The Qwen-Image VAE that turns pictures into latents: its file, an all-in-one checkpoint, or a diffusers folder.",
        path="read",
    )
    qwen: str = setting(
        help="The Qwen3-0.6B text encoder: its file, an all-in-one checkpoint, or a Hugging Face or diffusers folder.",
        path="read",
    )
    t5_tokenizer_dir: str = setting(
        help="The T5 tokenizer: a folder with config.json, spiece.model and tokenizer.json, or ComfyUI's own.", path="read"
    )
    qwen_tokenizer_dir: str = setting(
        "", "Qwen's tokenizer. Empty: in the Qwen folder, beside the Qwen file, or ComfyUI's.", path="read", resume="free"
    )
    llm_adapter: str = setting(
        "",
        "The LLM adapter, where it is not in the transformer's file: an Anima file that holds one, or diffusers' "
        "text_conditioner. Empty: the transformer's own.",
        path="read",
        resume="fixed",
    )
    dtype: str = setting(
        "auto",
        "Precision of the frozen model. auto: bf16 where the card has it; int8: the same, with half of the memory for its "
        "weights. The adapter is always fp32.",
        choices=("auto", *DTYPES, "int8"),
        resume="fixed",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OutputConfig:
    """Where results go: `<dir>/<name>.safetensors` and `<dir>/<name>-run/`."""

    dir: str = setting("output", "Folder of the adapter and of the run.", path="written", resume="free", shapes=False)
    name: str = setting("anima", "Name of the adapter file and of the run.", resume="free")
    adapter_dir: str = setting(
        "", "Folder of the adapter, where that is not the run's.", path="written", resume="free", shapes=False
    )
    save_dtype: str = setting("bf16", "Precision of the saved file.", choices=DTYPES, resume="free")
    key_format: str = setting(
        "diffusion_model",
        "Key names of the saved file, diffusion_model or lora_unet. ComfyUI reads both; kohya's tools expect lora_unet.",
        choices=KEY_FORMATS,
        resume="free",
    )
    save_every_n_steps: int = setting(
        0, "Steps between intermediate saves of the adapter; 0: none.", low=0, resume="free", shapes=False
    )
    save_every_n_epochs: int = setting(
        0, "Epochs between intermediate saves of the adapter; 0: none.", low=0, resume="free", shapes=False
    )
    save_last_n: int = setting(0, "Keep only the newest N intermediate saves; 0 keeps all.", low=0, resume="free", shapes=False)
    save_last_n_steps: int = setting(
        0, "Keep only intermediate saves of the last N steps; 0 keeps all.", low=0, resume="free", shapes=False
    )
    save_last_n_epochs: int = setting(
        0, "Keep only the newest N saves by epochs; 0 keeps all.", low=0, resume="free", shapes=False
    )
    save_last_n_steps_state: int = setting(
        0,
        "Keep only checkpoints of the last N steps, of those that were written with intermediate saves; 0: as the adapters.",
        low=0,
        resume="free",
        shapes=False,
    )
    save_last_n_epochs_state: int = setting(
        0,
        "Keep only the newest N checkpoints that were written with saves by epochs; 0: as the adapters.",
        low=0,
        resume="free",
        shapes=False,
    )
    save_state: bool = setting(False, "Write a resumable checkpoint with every intermediate save.", resume="free", shapes=False)
    checkpoint_every_n_steps: int = setting(
        0,
        "Steps between automatic checkpoints; one is also written every ten minutes and on every way out.",
        low=0,
        resume="free",
        shapes=False,
    )
    checkpoint_every_n_minutes: float = setting(
        10.0,
        "Minutes between automatic checkpoints, the most that a power cut can cost; 0 is off.",
        low=0,
        resume="free",
        shapes=False,
    )
    keep_checkpoints: int = setting(
        2, "Keep only the newest N automatic checkpoints; 0 keeps all.", low=0, resume="free", shapes=False
    )
    resume: str = setting(
        "", "Continue a checkpoint: its folder, its run's folder, or latest.", path="written", resume="free", shapes=False
    )
    resume_with_changes: bool = setting(
        False,
        "Continue although pictures, captions or the learning rate are not what they were.",
        resume="free",
        shapes=False,
    )
    comment: str = setting("", "A comment for the adapter's metadata.", resume="free", shapes=False)

    def __post_init__(self) -> None:
        check(self)
        require(is_plain_name(self.name), "output.name", repr(self.name), "must be a plain file name")
        short = len(self.name.encode()) <= MAX_NAME_BYTES
        require(short, "output.name", f"{self.name[:20]!r}…", f"must be at most {MAX_NAME_BYTES} bytes long")

    @property
    def run_dir(self) -> Path:
        """Return the folder of the run's log, checkpoints and previews."""
        return Path(self.dir) / f"{self.name}-run"


@dataclass(frozen=True)
class TrainConfig:
    """One training run, whole."""

    model: ModelConfig
    datasets: tuple[DatasetConfig, ...]
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    max_train_steps: int = setting(1000, "Optimizer steps: 1000 to 2000 for most sets.", resume="free")
    max_train_epochs: int = setting(
        0, "Epochs; where it is above 0 it decides instead of `train.max_train_steps`.", low=0, resume="free"
    )
    gradient_accumulation_steps: int = setting(1, "Batches per step: like a larger batch, without its memory.", low=1)
    memory: str = setting(
        "auto",
        "What is computed again in the backward pass: auto as little as fits the free memory, recompute every block, offload "
        "the same in the least memory, the blocks' inputs in the computer's own, keep no matrix product and no attention.",
        choices=MEMORY,
        resume="free",
        shapes=False,
    )
    memory_gb: float = setting(
        0.0,
        "The most memory of the device, in GB, that a run may take, so that other programs have the rest; 0: all that is free.",
        low=0,
        resume="free",
        shapes=False,
    )
    blocks_to_swap: int = setting(
        0,
        "Blocks whose frozen weights wait in the computer's memory and come to the card for their turn, at least; 0: as many "
        "as the card's memory asks for, usually none.",
        low=0,
        resume="free",
        shapes=False,
    )
    attention: str = setting(
        "sdpa",
        "How attention is computed: sdpa as torch chooses, auto by whichever of torch's kernels is measured to be right and "
        "fastest on this device, or the one that is named. Not yet measured on a card: sdpa is usual.",
        choices=ATTENTION,
        resume="free",
        shapes=False,
    )
    trim_text: bool = setting(
        False,
        "Leave out the rows of zeros that captions of fewer than 512 tokens are padded with, and add exactly what they do to "
        "attention: about 3 % less to compute. Not yet measured on a card: off is usual.",
        resume="free",
        shapes=False,
    )
    plain: bool = setting(
        False, "Compute in the slow obvious form of whatever has a fast one: to compare them, or to find a fault."
    )
    compile: bool = setting(
        False,
        "Compile the model's blocks, if there is a compiler and they are then faster; no GPU has been tried yet. The first "
        "run takes minutes longer.",
        resume="free",
        shapes=False,
    )
    ema_decay: float = setting(
        0.0,
        "EMA: decay of the average of the adapter over steps, which is then what is saved; 0 is off, 0.999 is usual.",
        low=0,
        below=1,
    )
    seed: int = setting(42, "Seed of all random draws.", low=0, below=2**63)
    device: str = setting("auto", "Device to train on: auto, cpu, cuda, cuda:1, xpu or mps.", resume="free", shapes=False)
    cache_dir: str = setting(
        "",
        "Folder of cached latents and text. Empty: .anima_cache in the first folder of pictures.",
        path="written",
        resume="free",
        shapes=False,
    )
    cache_latents: bool = setting(True, "Cache latents on disk; off keeps them in memory.", resume="free", shapes=False)
    cache_text: bool = setting(True, "Cache text on disk; off keeps it in memory.", resume="free", shapes=False)
    caption_variants: int = setting(
        16, "How many shuffles of each caption are cached; 0 encodes captions in every step.", low=0
    )
    crop_variants: int = setting(
        4, "How many crops of each picture are cached, where `subset.random_crop` draws them.", low=1, high=1000
    )
    vae_batch_size: int = setting(
        0,
        "Pictures that the VAE encodes at once. 0: as many as have no more pixels than one tile. On the CPU always one.",
        low=0,
        resume="free",
        shapes=False,
    )
    strict_data: bool = setting(
        False, "Problems in the data end the run before it begins, instead of being counted.", resume="free", shapes=False
    )
    vae_tile: int = setting(
        1536, "Longest side, px, that passes the VAE whole; longer pictures pass in tiles of this size. 0: never in tiles."
    )

    def __post_init__(self) -> None:
        check(self)
        require(len(self.datasets) > 0, "subset.image_dir", "()", "name at least one folder of pictures")
        if self.max_train_epochs == 0:
            require(self.max_train_steps >= 1, "train.max_train_steps", self.max_train_steps, "must be at least 1")
        require(not (self.plain and self.compile), "train.compile", self.compile, "cannot be with `train.plain`; leave one out")
        tile_ok = self.vae_tile == 0 or (self.vae_tile >= 256 and self.vae_tile % 64 == 0)
        require(tile_ok, "train.vae_tile", self.vae_tile, "must be 0, or a multiple of 64 that is at least 256")
        self.held_out.check_beside(self.datasets)
        self._check_one_rate()

    def _check_one_rate(self) -> None:
        several = bool(self.network.learning_rates) or self.network.loraplus_lr_ratio != 1
        if OPTIMIZERS[self.optimizer.type].one_rate and several:
            unset = "leave `network.learning_rates` and `network.loraplus_lr_ratio` unset"
            raise SettingError(f"`optimizer.type`={self.optimizer.type} takes one learning rate: {unset}")
