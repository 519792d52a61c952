"""Flag values -> TrainConfig: where sd-scripts' words become ours, each rule of its own in one function."""

import ast
import dataclasses
import os
import random
from pathlib import Path
from typing import Any

from ..errors import FileError, SettingError
from ..settings import (
    DatasetConfig,
    FlowConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    SampleConfig,
    SubsetConfig,
    TrainConfig,
)
from ..settings.network import FULL_MATRIX_RANK
from ..settings.setting import name_of
from .dataset_config import DATASET_KEYS, SUBSET_KEYS, datasets_from, read_dataset_config, resolution
from .flags import NETWORK_ARGS, mapped_flags

TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

LAYER_ARGS = {"targets", "target_modules", "include_patterns", "exclude_patterns", "train_llm_adapter"}
SAID_BY = {  # a setting that a file of weights gives -> the --network_args that say it themselves
    **dict.fromkeys(("targets", "include"), LAYER_ARGS),
    "ranks": {"network_reg_dims"},
    "train_norm": {"train_norm"},
    "factor": {"lokr_factor", "factor"},
    "decompose_both": {"lokr_decompose_both"},
}

Values = dict[str, Any]


def train_config(values: Values, explicit: set[str]) -> tuple[TrainConfig, list[str]]:
    """Return the run, and notes. explicit: what was given, typed or in a file; the rest are defaults."""
    check_required(values)
    seed, seed_notes = chosen_seed(values["seed"])
    values = values | {"seed": seed}
    optimizer = optimizer_config(values)  # before any file is looked at: its refusals are documented to come first
    datasets, notes = dataset_configs(values, explicit)
    config = TrainConfig(
        model=ModelConfig(**settings_for(ModelConfig, values)),
        datasets=datasets,
        network=network_config(values),
        optimizer=optimizer,
        flow=flow_config(values),
        samples=sample_config(values),
        output=OutputConfig(**settings_for(OutputConfig, values)),
        **settings_for(TrainConfig, values),
    )
    return config, seed_notes + notes


def chosen_seed(seed: int) -> tuple[int, list[str]]:
    """Draw a seed for -1, as front ends mean it, and say so. Several processes would each draw another: refused."""
    if seed != -1:
        return seed, []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("seed=-1: each of several processes would draw its own; name a seed")
    drawn = random.SystemRandom().randrange(2**31)
    return drawn, [f"seed=-1: {drawn} was drawn; the run's config.toml has it"]


def settings_for(cls: type, values: Values) -> Values:
    """Return what the flags say of the settings of a class, in our words."""
    names = {name_of(cls, f.name): f.name for f in dataclasses.fields(cls)}
    found = {}
    for flag in mapped_flags():
        if flag.setting in names and flag.name in values:
            value = values[flag.name]
            if flag.words and value not in flag.words:  # argparse checks typed choices; a file's are checked here
                known = ", ".join(map(str, flag.words))
                raise SettingError(f"{flag.name}={value}: must be one of {known}")
            found[names[flag.setting]] = flag.words.get(value, value) if flag.words else value
    return found


def check_required(values: Values) -> None:
    """Refuse what nothing can be trained without, in the words of sd-scripts-anima."""
    if not values["anima_transformer"]:
        either = "Set --anima_transformer or --pretrained_model_name_or_path."
        raise SettingError(f"Anima transformer path is required. {either}")
    if not values["vae"]:
        raise SettingError("Anima VAE path is required. Set --vae.")
    if not values["qwen"]:
        raise SettingError("Qwen path is required. Set --qwen.")
    if not values["t5_tokenizer_dir"]:
        raise SettingError("T5 tokenizer directory is required. Set --t5_tokenizer_dir.")
    network_type(values["network_module"])


def network_type(module: str) -> str:
    """Return the type that a --network_module means. Raises SettingError in the words of sd-scripts-anima."""
    from ..adapters.types import ADAPTER_TYPES  # loads torch, which takes seconds: only once the rest is known to be good

    for kind in ADAPTER_TYPES:
        if module in kind.modules:
            return kind.name
    expected = tuple(word for kind in ADAPTER_TYPES for word in kind.modules)
    raise SettingError(f"Unsupported network module: {module}. Expected one of: {expected}")


def flow_config(values: Values) -> FlowConfig:
    """Read the flow's flags: timestep_sampling=sigma takes its density of t from weighting_scheme.

    --anima_flow_shift is sd-scripts-anima's name for a shifted t.
    """
    found = settings_for(FlowConfig, values)
    if values["timestep_sampling"] == "sigma":
        if values["weighting_scheme"] == "mode" or found["shift"] != 1:
            raise SettingError("timestep_sampling=sigma: mode and discrete_flow_shift are not available with it; use shift")
        found["timestep_sampling"] = "logit_normal" if values["weighting_scheme"] == "logit_normal" else "uniform"
    if values["anima_flow_shift"] > 0:
        found |= {"timestep_sampling": "shift", "shift": values["anima_flow_shift"]}
    return FlowConfig(**found)


def optimizer_config(values: Values) -> OptimizerConfig:
    """Read the optimizer's flags: weight_decay, eps and betas stand among --optimizer_args, warm-up below 1 is a share."""
    own = key_values(values["optimizer_args"], "optimizer_args")
    found = settings_for(OptimizerConfig, values)
    try:
        for name in ("weight_decay", "eps"):
            if name in own:
                found[name] = float(own.pop(name))
        if "betas" in own:
            found["betas"] = tuple(float(b) for b in own.pop("betas").strip("()[] ").split(","))
    except ValueError as error:
        raise SettingError(f"optimizer_args: {error}") from None
    if values["optimizer_type"].lower() == "adafactor":
        absolute_steps_only(own)
    for flag, kind in (("use_lion_optimizer", "Lion"), ("use_8bit_adam", "AdamW8bit")):
        if values[flag]:
            found["type"] = kind
    steps = found["warmup_steps"]
    share = 0 < steps < 1
    found["warmup_steps"] = 0 if share else int(steps)
    found["warmup_ratio"] = found["warmup_ratio"] or (steps if share else 0.0)
    found["learning_rate"] = values["unet_lr"] or found["learning_rate"]
    found["args"] = tuple(f"{k}={v}" for k, v in own.items())
    return OptimizerConfig(**found)


def absolute_steps_only(own: dict[str, str]) -> None:
    """Read sd-scripts' Adafactor switches. Its rate is always absolute here: False is taken out, True is refused."""
    for name in ("relative_step", "scale_parameter", "warmup_init"):
        if name in own and boolean(own.pop(name), name):
            raise SettingError(f"optimizer_args {name}=True: Adafactor's step is learning_rate here; use {name}=False")


def network_config(values: Values) -> NetworkConfig:
    """Read the network's flags and --network_args. A LoKr of two whole factors takes no alpha."""
    own = key_values(values["network_args"], "network_args")
    unknown = [name for name in own if name not in NETWORK_ARGS]
    if unknown:
        raise SettingError(f"network_args: unknown {unknown[0]}; known are {', '.join(NETWORK_ARGS)}")
    found = settings_for(NetworkConfig, values) | {"type": network_type(values["network_module"])}
    if found["rank"] >= FULL_MATRIX_RANK:
        found["alpha"] = 0.0
    within = arguments_from(own)
    within["train_norm"] = found.pop("train_norm") or within.get("train_norm", False)
    found |= targets_from(own, within.pop("targets", "attn+mlp")) | within
    return NetworkConfig(**(found | (shape_of_weights(values["network_weights"], own) if values["dim_from_weights"] else {})))


def targets_from(own: dict[str, str], targets: str) -> Values:
    """Read which layers are meant. sd-scripts matches include_patterns and exclude_patterns against the whole name."""
    if boolean(own.get("train_llm_adapter", "false"), "train_llm_adapter"):
        targets += "+llm_adapter"
    include = tuple(f"re:^(?:{p})$" for p in python_list(own.get("include_patterns", ""), "include_patterns"))
    exclude = tuple(f"re:^(?:{p})$" for p in python_list(own.get("exclude_patterns", ""), "exclude_patterns"))
    if "target_modules" in own:
        targets, include = "", (*include, *(p.strip() for p in own["target_modules"].split(",") if p.strip()))
    ranks, rates = (pairs(own.get(name, ""), name) for name in ("network_reg_dims", "network_reg_lrs"))
    return {"targets": targets, "include": include, "exclude": exclude, "ranks": ranks, "learning_rates": rates}


def arguments_from(own: dict[str, str]) -> Values:
    """Read the --network_args that set one setting, as the kind that it has."""
    found: Values = {}
    for key, text in own.items():
        field = NETWORK_ARGS[key].setting.partition(".")[2]
        if not field:
            continue
        kind = NetworkConfig.__annotations__[field]
        try:
            found[field] = boolean(text, key) if kind is bool else kind(text)
        except ValueError:
            raise SettingError(f"network_args: {key}={text}: must be {kind.__name__}") from None
    return found


def shape_of_weights(path: str, own: dict[str, str]) -> Values:
    """Read dim_from_weights: the settings that give each layer the rank that it has in the adapter file.

    Layers and ranks that --network_args names hold.
    """
    from ..adapters.from_file import network_of

    if not path:
        raise SettingError("dim_from_weights: needs --network_weights")
    return {name: value for name, value in network_of(path).items() if not own.keys() & SAID_BY.get(name, set())}


def dataset_configs(values: Values, explicit: set[str]) -> tuple[tuple[DatasetConfig, ...], list[str]]:
    """Read a dataset_config file, the [dataset] of a sectioned TOML, or a folder. Flags that were given fill the gaps."""
    given = {key: values[key] for key in (*SUBSET_KEYS, *DATASET_KEYS, "resolution") if key in explicit and key in values}
    given |= {"batch_size": values["train_batch_size"]} if "train_batch_size" in explicit else {}
    given |= {"num_repeats": values["dataset_repeats"]} if "dataset_repeats" in explicit else {}
    given |= {"prior_loss_weight": values["prior_loss_weight"]}
    if values["dataset_config"]:
        return read_dataset_config(values["dataset_config"], given)
    if "inline_datasets" in values:
        without_batch = {key: value for key, value in given.items() if key != "batch_size"}
        return datasets_from(values["inline_datasets"], without_batch, "[dataset]")
    if not values["train_data_dir"]:
        raise SettingError("No pictures: set --dataset_config, or --train_data_dir with a folder of captioned pictures.")
    return (folder_dataset(values, explicit),), []


def folder_dataset(values: Values, explicit: set[str]) -> DatasetConfig:
    """Read a folder of pictures, and one of regularisation pictures beside it, which has no masks and no metadata file.

    sd-scripts takes repeats and captions from the names of sub-folders; a number that was given is the only one.
    """
    own = settings_for(SubsetConfig, values) | {"folder_numbers": "dataset_repeats" not in explicit}
    subsets = [SubsetConfig(image_dir=values["train_data_dir"], **own)]
    if values["reg_data_dir"]:
        other = {"loss_weight": values["prior_loss_weight"], "is_reg": True, "mask_dir": "", "metadata_file": ""}
        subsets.append(SubsetConfig(image_dir=values["reg_data_dir"], **(own | other)))
    sizes = {"resolutions": (resolution(values["resolution"], "resolution"),)}
    return DatasetConfig(subsets=tuple(subsets), **(settings_for(DatasetConfig, values) | sizes))


def sample_config(values: Values) -> SampleConfig:
    """Read the prompt file and the previews' flags; without prompts there are no previews. Noise is the run's seed."""
    path = values["sample_prompts"]
    if not path:
        return SampleConfig()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({error}); check --sample_prompts") from None
    width, height = resolution(values["sample_size"], "sample_size")
    prompts = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    own = settings_for(SampleConfig, values)
    return SampleConfig(prompts=prompts, width=width, height=height, seed=values["seed"], **own)


def key_values(items: Any, flag: str) -> dict[str, str]:
    """Split ["a=1", "b=2"] into {"a": "1", "b": "2"}. Raises SettingError."""
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingError(f"{flag}: {item!r} must be written name=value")
        found[key.strip()] = value.strip()
    return found


def boolean(text: str, name: str) -> bool:
    if text.lower() not in TRUE_WORDS + FALSE_WORDS:
        raise SettingError(f"{name}={text}: must be true or false")
    return text.lower() in TRUE_WORDS


def python_list(text: str, name: str) -> list[str]:
    """Read a list as sd-scripts writes it, in Python: "['re','re']"."""
    if not text:
        return []
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise SettingError(f"network_args: {name}={text}: write it as \"['regex','regex']\"")
    return found


def pairs(text: str, name: str) -> tuple[str, ...]:
    """Read "re=16,re=0" as ("re:^(?:re)$=16", …): whole names, as in sd-scripts."""
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        pattern, equals, number = item.rpartition("=")
        if not equals:
            raise SettingError(f"network_args: {name}: {item!r} must be written pattern=number")
        found.append(f"re:^(?:{pattern})$={number}")
    return tuple(found)
