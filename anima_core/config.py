"""Every setting and its default, in one place.

The classes are frozen and check themselves when they are made, so a config that exists is a valid one.
Nothing here opens a file: what needs the disk is checked by `anima_core.training.preflight`.
An empty string, an empty tuple or 0 means "not set" (TOML, which freezes a run, has no null).
"""

import math
import re
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from .errors import SettingError
from .preview_prompt import PreviewRequest, preview_request

DTYPES = ("auto", "bf16", "fp16", "fp32")
NETWORKS = ("lora", "lokr")
KEY_FORMATS = ("diffusion_model", "lora_unet")
TIMESTEP_SAMPLINGS = ("logit_normal", "uniform", "shift", "resolution_shift")
LOSSES = ("mse", "huber", "l1")
WEIGHTINGS = ("none", "sigma_sqrt", "cosmap")
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
)
SCHEDULE_FREE = ("RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree")
OPTIMIZERS = ("AdamW", "AdamW8bit", "Adafactor", "Lion", "Prodigy") + SCHEDULE_FREE

FULL_MATRIX_RANK = 100000  # sd-scripts-anima: a rank this large asks for a full-matrix LoKr


def require(ok: bool, name: str, value: Any, rule: str) -> None:
    """Refuse a setting: `name=value: rule`."""
    if not ok:
        raise SettingError(f"{name}={value}: {rule}")


def require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    require(value in allowed, name, value, f"must be one of {', '.join(allowed)}")


def require_positive(name: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, name, value, "must be a number above 0")


def require_at_least(name: str, value: float, low: float) -> None:
    require(math.isfinite(value) and value >= low, name, value, f"must be at least {low}")


def require_rate(name: str, value: float) -> None:
    require(0 <= value < 1, name, value, "must be at least 0 and below 1")


def optimizer_name(name: str) -> str:
    """The canonical spelling: any case, and the sd-scripts-anima aliases `radam_schedulefree`, …"""
    plain = name.replace("_", "").lower()
    for known in OPTIMIZERS:
        if known.lower() == plain:
            return known
    raise SettingError(f"optimizer={name}: must be one of {', '.join(OPTIMIZERS)}")


@dataclass(frozen=True)
class ModelConfig:
    """The four model files. Paths; nothing is opened here."""

    transformer: str
    vae: str
    qwen: str  # a ComfyUI single file or a Hugging Face directory
    t5_tokenizer_dir: str  # holds config.json, spiece.model, tokenizer.json; or ComfyUI's bundled one
    qwen_tokenizer_dir: str = ""  # empty: in the qwen directory, beside the file, or ComfyUI's
    dtype: str = "auto"  # of the frozen base: auto is bf16 where the device has it, else fp32

    def __post_init__(self) -> None:
        require_one_of("dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class SubsetConfig:
    """One folder of captioned pictures. Caption options apply in the order in which they stand here."""

    image_dir: str
    num_repeats: int = 1  # a kohya folder name `N_name` overrides it
    caption_extension: str = ".txt"
    class_tokens: str = ""  # the caption of a picture that has no caption file
    caption_dropout_rate: float = 0.0  # chance that the whole caption is empty
    caption_prefix: str = ""
    caption_suffix: str = ""
    caption_separator: str = ","
    keep_tokens: int = 0  # so many leading tags keep their place
    keep_tokens_separator: str = ""  # what stands before it keeps its place instead
    shuffle_caption: bool = False
    caption_tag_dropout_rate: float = 0.0  # chance of each tag that is not kept
    flip_aug: bool = False  # each picture also mirrored, half of the time
    alpha_mask: bool = False  # the picture's alpha channel weighs the loss
    mask_dir: str = ""  # grey pictures of the same stem weigh the loss
    loss_weight: float = 1.0  # sd-scripts' prior_loss_weight, for regularisation pictures

    def __post_init__(self) -> None:
        require(bool(self.image_dir), "image_dir", repr(self.image_dir), "name a folder of pictures")
        require_at_least("num_repeats", self.num_repeats, 1)
        require_at_least("keep_tokens", self.keep_tokens, 0)
        require(0 <= self.caption_dropout_rate <= 1, "caption_dropout_rate", self.caption_dropout_rate, "must be 0 to 1")
        require_rate("caption_tag_dropout_rate", self.caption_tag_dropout_rate)
        require_at_least("loss_weight", self.loss_weight, 0)

    @property
    def varies(self) -> bool:
        """Whether the same picture meets different captions (beyond dropping the caption as a whole)."""
        return self.shuffle_caption or self.caption_tag_dropout_rate > 0


@dataclass(frozen=True)
class DatasetConfig:
    """Folders that share resolutions, buckets and batch size. Sizes are pixels."""

    subsets: tuple[SubsetConfig, ...]
    resolutions: tuple[tuple[int, int], ...] = ((1024, 1024),)  # (width, height); several: each picture at each
    batch_size: int = 1
    enable_bucket: bool = True  # off: every picture is cropped to the resolution itself
    min_bucket_reso: int = 256
    max_bucket_reso: int = 4096  # kohya's 1024 would cap both sides of a 1024 run
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False

    def __post_init__(self) -> None:
        require(len(self.subsets) > 0, "datasets", "()", "name at least one folder of pictures")
        require(len(self.resolutions) > 0, "resolution", "()", "name at least one resolution")
        for width, height in self.resolutions:
            require(min(width, height) >= 64, "resolution", f"{width}x{height}", "sides must be at least 64 px")
            require(width % 16 == 0 and height % 16 == 0, "resolution", f"{width}x{height}", "sides must be multiples of 16")
        require_at_least("batch_size", self.batch_size, 1)
        steps_ok = self.bucket_reso_steps in (16, 32, 48, 64)
        require(steps_ok, "bucket_reso_steps", self.bucket_reso_steps, "must be 16, 32, 48 or 64")
        require_at_least("min_bucket_reso", self.min_bucket_reso, 16)
        in_order = self.min_bucket_reso <= self.max_bucket_reso
        require(in_order, "max_bucket_reso", self.max_bucket_reso, f"must not be below min_bucket_reso={self.min_bucket_reso}")


@dataclass(frozen=True)
class NetworkConfig:
    """The adapter. Patterns: `re:<regex>` searches, `*` and `?` glob the whole name, else a leaf or dotted suffix."""

    type: str = "lora"
    rank: int = 32
    alpha: float = 32.0  # 0 means alpha = rank; the adapter is scaled by alpha / rank
    targets: str = "attn+mlp"  # words joined by +: attn mlp adaln embedders llm_adapter all; a leading + adds to attn+mlp
    include: tuple[str, ...] = ()  # patterns of further modules
    exclude: tuple[str, ...] = ()  # patterns of modules left out; include wins
    ranks: tuple[str, ...] = ()  # "pattern=rank", first match wins, 0 leaves the module out
    learning_rates: tuple[str, ...] = ()  # "pattern=lr", first match wins
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    loraplus_lr_ratio: float = 1.0  # learning rate of the zero-initialised factor, relative (LoRA+)
    factor: int = 8  # LoKr: size of the small Kronecker factor; -1 balances
    full_matrix: bool = False  # LoKr: both factors whole
    decompose_both: bool = False  # LoKr: the small factor low-rank as well
    train_norm: bool = False  # also train the norms' weights
    weights: str = ""  # start from this adapter file

    def __post_init__(self) -> None:
        require_one_of("network", self.type, NETWORKS)
        require_at_least("rank", self.rank, 1)
        require_at_least("alpha", self.alpha, 0)
        require(self.factor == -1 or self.factor >= 1, "lokr_factor", self.factor, "must be -1 or at least 1")
        for name in ("dropout", "rank_dropout", "module_dropout"):
            require_rate(f"network_{name}" if name == "dropout" else name, getattr(self, name))
        require_positive("loraplus_lr_ratio", self.loraplus_lr_ratio)
        for item in self.ranks:
            require_at_least(f"rank of {pattern_value(item)[0]}", pattern_value(item)[1], 0)
        for item in self.learning_rates:
            require_at_least(f"learning rate of {pattern_value(item)[0]}", pattern_value(item)[1], 0)
        huge = self.rank >= FULL_MATRIX_RANK and self.type == "lora"
        require(not huge, "rank", self.rank, "means a full matrix, which only lokr has")


def pattern_value(item: str) -> tuple[str, float]:
    """Split "pattern=number" at its last `=`; the pattern itself may hold one."""
    pattern, equals, number = item.rpartition("=")
    try:
        return pattern, float(number)
    except ValueError:
        raise SettingError(f"{item!r}: write it as pattern=number") from None


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule. One step is one optimizer step."""

    type: str = "AdamW"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    args: tuple[str, ...] = ()  # further "name=value" arguments of the optimizer's own
    max_grad_norm: float = 1.0  # 0 turns clipping off
    scheduler: str = "constant"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0  # of all steps; used when warmup_steps is 0
    num_cycles: float = 1.0  # cosine_with_restarts: hills; cosine: full waves / 2
    power: float = 1.0  # polynomial
    min_lr_ratio: float = 0.0  # cosine_with_min_lr: the floor, relative

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", optimizer_name(self.type))
        require_positive("learning_rate", self.learning_rate)
        require_at_least("weight_decay", self.weight_decay, 0)
        betas_ok = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        require(betas_ok, "betas", self.betas, "must be two numbers in [0, 1)")
        require_positive("eps", self.eps)
        require_at_least("max_grad_norm", self.max_grad_norm, 0)
        require_one_of("lr_scheduler", self.scheduler, SCHEDULES)
        require_at_least("lr_warmup_steps", self.warmup_steps, 0)
        require_rate("lr_warmup_ratio", self.warmup_ratio)
        require_positive("lr_scheduler_num_cycles", self.num_cycles)
        require_positive("lr_scheduler_power", self.power)
        require(0 <= self.min_lr_ratio <= 1, "lr_scheduler_min_lr_ratio", self.min_lr_ratio, "must be 0 to 1")
        if self.type in SCHEDULE_FREE:
            self._check_schedule_free()

    def _check_schedule_free(self) -> None:
        """The words are sd-scripts-anima's own, which people search for."""
        if self.scheduler != "constant":
            raise SettingError(f"optimizer={self.type} requires lr_scheduler=constant")
        if self.warmup_steps > 0:
            raise SettingError(f"optimizer={self.type} requires lr_warmup_steps=0")
        if self.warmup_ratio > 0:
            raise SettingError(f"optimizer={self.type} requires lr_warmup_ratio=0")


@dataclass(frozen=True)
class FlowConfig:
    """Rectified flow: x_t = (1 - t) x0 + t eps, target eps - x0."""

    timestep_sampling: str = "logit_normal"
    sigmoid_scale: float = 1.0  # t = sigmoid(scale * N(0, 1))
    shift: float = 1.0  # t' = s t / (1 + (s - 1) t), for timestep_sampling=shift
    loss: str = "mse"
    huber_delta: float = 0.1
    weighting: str = "none"
    noise_offset: float = 0.0  # eps += offset * N(0, 1), one draw per sample and channel

    def __post_init__(self) -> None:
        require_one_of("timestep_sampling", self.timestep_sampling, TIMESTEP_SAMPLINGS)
        require_positive("sigmoid_scale", self.sigmoid_scale)
        require_positive("flow_shift", self.shift)
        require_one_of("loss_type", self.loss, LOSSES)
        require_positive("huber_delta", self.huber_delta)
        require_one_of("weighting_scheme", self.weighting, WEIGHTINGS)
        require_at_least("noise_offset", self.noise_offset, 0)


@dataclass(frozen=True)
class SampleConfig:
    """Preview pictures during training. No prompts: none."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    width: int = 1024
    height: int = 1024
    steps: int = 30
    cfg: float = 4.0
    shift: float = 3.0  # ComfyUI's sampling shift for this model
    seed: int = 42
    every_n_steps: int = 0
    every_n_epochs: int = 0
    at_first: bool = False
    at_end: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            side = getattr(self, name)
            require(side >= 64 and side % 16 == 0, f"sample {name}", side, "must be a multiple of 16, at least 64")
        require_at_least("sample steps", self.steps, 1)
        require_at_least("sample cfg", self.cfg, 0)
        require_positive("sample shift", self.shift)
        require_at_least("sample_every_n_steps", self.every_n_steps, 0)
        require_at_least("sample_every_n_epochs", self.every_n_epochs, 0)
        self.requests()

    def requests(self) -> tuple[PreviewRequest, ...]:
        return tuple(preview_request(line, self) for line in self.prompts)


NOT_IN_NAMES = re.compile(r'[/\\:*?"<>|\x00-\x1f\ud800-\udfff]')  # lone surrogates: bytes that are no text
LONGEST_NAME = 180  # bytes: file systems take 255, and names of checkpoints and temporary files are longer than the run's


@dataclass(frozen=True)
class OutputConfig:
    """Where results go: `<dir>/<name>.safetensors` and `<dir>/<name>-run/`."""

    dir: str = "output"
    name: str = "anima"
    adapter_dir: str = ""  # where the adapter goes instead; empty: dir
    save_dtype: str = "bf16"
    key_format: str = "diffusion_model"
    save_every_n_steps: int = 0  # also write the adapter as it then is
    save_every_n_epochs: int = 0
    save_last_n: int = 0  # keep only so many of those; 0 keeps all
    save_state: bool = False  # with them, a checkpoint to resume from
    checkpoint_every_n_steps: int = 0  # checkpoints alone
    checkpoint_every_n_minutes: float = 10.0  # the same by the clock: what a power cut costs at most; 0 is off
    keep_checkpoints: int = 2  # of those; 0 keeps all
    resume: str = ""  # a checkpoint directory, or "latest"
    resume_with_changes: bool = False  # let learning rate, data and the like differ from the checkpoint's
    comment: str = ""  # written into the adapter's metadata

    def __post_init__(self) -> None:
        require_one_of("save_precision", self.save_dtype, DTYPES[1:])
        require_one_of("key_format", self.key_format, KEY_FORMATS)
        plain = bool(self.name.strip()) and not NOT_IN_NAMES.search(self.name) and self.name not in (".", "..")
        require(plain, "output_name", repr(self.name), "must be a plain file name")
        short = len(self.name.encode()) <= LONGEST_NAME
        require(short, "output_name", f"{self.name[:20]!r}…", f"must be at most {LONGEST_NAME} bytes long")
        counts = ("save_every_n_steps", "save_every_n_epochs", "save_last_n", "keep_checkpoints")
        for name in (*counts, "checkpoint_every_n_steps", "checkpoint_every_n_minutes"):
            require_at_least(name, getattr(self, name), 0)


@dataclass(frozen=True)
class TrainConfig:
    """One training run, whole. `max_train_steps` counts optimizer steps; `max_train_epochs` wins when it is set."""

    model: ModelConfig
    datasets: tuple[DatasetConfig, ...]
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    max_train_steps: int = 1000
    max_train_epochs: int = 0
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    ema_decay: float = 0.0  # 0 is off; 0.999 is usual
    seed: int = 42
    device: str = "auto"
    cache_dir: str = ""  # empty: `.anima_cache` in the first folder of pictures
    cache_latents: bool = True  # on disk; off keeps them in memory only
    cache_text: bool = True
    caption_variants: int = 16  # shuffled captions: so many different ones per picture, cached; 0 encodes on the fly
    vae_batch_size: int = 1
    strict_data: bool = False  # whatever the data check warns of ends the run before it begins
    vae_tile: int = 1536  # px: pictures with a longer side are encoded and decoded in tiles

    def __post_init__(self) -> None:
        require(len(self.datasets) > 0, "datasets", "()", "name at least one folder of pictures")
        several_rates = bool(self.network.learning_rates) or self.network.loraplus_lr_ratio != 1
        if self.optimizer.type == "Prodigy" and several_rates:
            raise SettingError("optimizer=Prodigy takes one learning rate: leave learning_rates and loraplus_lr_ratio unset")
        if self.max_train_epochs == 0:
            require_at_least("max_train_steps", self.max_train_steps, 1)
        require_at_least("max_train_epochs", self.max_train_epochs, 0)
        require_at_least("gradient_accumulation_steps", self.gradient_accumulation_steps, 1)
        require_rate("ema_decay", self.ema_decay)
        require_at_least("caption_variants", self.caption_variants, 0)
        require_at_least("vae_batch_size", self.vae_batch_size, 1)
        tile_ok = self.vae_tile >= 256 and self.vae_tile % 64 == 0
        require(tile_ok, "vae_tile", self.vae_tile, "must be a multiple of 64, at least 256")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be 0 or more")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dicts and lists, ready for TOML or JSON."""
    return _plain(asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def from_dict(cls: type, data: dict[str, Any], where: str = "config") -> Any:
    """Rebuild a config class from `to_dict`'s output. An unknown key is an error that names its table."""
    if not isinstance(data, dict):
        raise SettingError(f"{where}={data!r}: must be a table")
    hints = get_type_hints(cls)
    unknown = set(data) - {f.name for f in fields(cls)}
    if unknown:
        raise SettingError(f"{where}: unknown setting {', '.join(sorted(map(str, unknown)))}")
    missing = [f.name for f in fields(cls) if f.name not in data and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise SettingError(f"{where}: {', '.join(missing)} is missing")
    return cls(**{key: _typed(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return from_dict(hint, value, where)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, list | tuple):
            raise SettingError(f"{where}={value!r}: must be a list")
        return tuple(_typed(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise SettingError(f"{where}={value!r}: must be {hint.__name__}")
    return value
