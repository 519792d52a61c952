"""Flag values -> TrainConfig: where sd-scripts' words become ours, each rule of its own in one function."""

import os
import random
from typing import Any

from ..errors import SettingError
from ..models.tokenizers import comfyui_tokenizers
from ..settings import (
    DatasetConfig,
    FlowConfig,
    HeldOutConfig,
    MetadataConfig,
    ModelConfig,
    NetworkConfig,
    OutputConfig,
    PriorConfig,
    SampleConfig,
    SubsetConfig,
    TrainConfig,
    from_dict,
)
from ..settings.network import FULL_MATRIX_RANK
from ..settings.samples import CHOSEN_FLAGS
from ..settings.toml_file import read_toml
from .attention import attention
from .dataset_config import DATASET_KEYS, SUBSET_KEYS, datasets_from, overridden, resolution, timestep_range
from .flags import known_arguments
from .kinds import EXPECTED, KINDS
from .lycoris import ALGORITHMS, LYCORIS, check_side, preset_targets
from .mapped import settings_for
from .named_values import boolean, key_values, pairs, python_list
from .network_args import MODULE_DEFAULTS, NETWORK_ARGS, OF_LOKR
from .optimizers import optimizer_config
from .prompts import read_prompts
from .started_from import network_of_weights
from .unmapped import ARGUMENTS_IGNORED, ARGUMENTS_REFUSED, is_on

FOLDERS = ("train_data_dir", "reg_data_dir", "metadata_file", "conditioning_data_dir")  # flags of one folder's pictures
RANGE = ("min_timestep", "max_timestep")
Values = dict[str, Any]


def train_config(values: Values, explicit: set[str]) -> tuple[TrainConfig, list[str]]:
    """Return the run, and notes. explicit: what was given, typed or in a file; the rest are defaults."""
    notes: list[str] = []
    check_required(values)
    seed, seed_notes = chosen_seed(values)
    values, notes = values | {"seed": seed}, notes + seed_notes
    optimizer = optimizer_config(values, notes)  # before any file is looked at: its refusals are documented to come first
    datasets, more = dataset_configs(values, explicit)
    notes += more
    config = TrainConfig(
        model=model_config(values, notes),
        datasets=datasets,
        network=network_config(values, explicit, notes),
        optimizer=optimizer,
        flow=flow_config(values, notes),
        samples=sample_config(values, notes),
        output=OutputConfig(**settings_for(OutputConfig, values)),
        metadata=MetadataConfig(**settings_for(MetadataConfig, values)),
        held_out=HeldOutConfig(**settings_for(HeldOutConfig, values)),
        prior=PriorConfig(**settings_for(PriorConfig, values)),
        **(run_settings(values, explicit, notes) | {"attention": attention(values, explicit, notes)}),
    )
    return config, notes


def run_settings(values: Values, explicit: set[str], notes: list[str]) -> Values:
    """Read the flags of the run itself. Offloading is a way to recompute, whether that is asked for beside it or not."""
    found = settings_for(TrainConfig, values)
    if not values["cpu_offload_checkpointing"]:
        return found
    if "gradient_checkpointing" in explicit and found["memory"] == "keep":
        notes.append("gradient_checkpointing=false has no effect: cpu_offload_checkpointing recomputes every block")
    return found | {"memory": "offload"}


def model_config(values: Values, notes: list[str]) -> ModelConfig:
    """Read the models' flags. What sd-scripts keeps in fp8 is kept in int8: of the same size, and closer to the model."""
    found = settings_for(ModelConfig, values)
    if values["fp8_base"]:
        found["dtype"] = "int8"
        notes.append("fp8_base: the model's weights are kept in int8 instead, which is as small as fp8 and closer to them")
        if values["mixed_precision"] not in ("auto", "bf16", "int8"):
            notes.append(f"mixed_precision={values['mixed_precision']} has no effect with fp8_base: the card's own is used")
    return ModelConfig(**found)


def chosen_seed(values: Values) -> tuple[int, list[str]]:
    """Draw a seed for -1, as front ends mean it, and say so; a run that goes on keeps the one that it has drawn.

    Several processes would each draw another: refused.
    """
    if values["seed"] != -1:
        return values["seed"], []
    if values["resume"]:
        kept = checkpoint_seed(OutputConfig(**settings_for(OutputConfig, values)))
        return kept, [f"seed=-1: {kept} of the checkpoint that is resumed"]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("seed=-1: each of several processes would draw its own; name a seed")
    drawn = random.SystemRandom().randrange(2**31)
    return drawn, [f"seed=-1: {drawn} was drawn; the run's config.toml has it"]


def checkpoint_seed(output: OutputConfig) -> int:
    """Return the seed of the run that is resumed. Raises FileError when there is no checkpoint."""
    from ..training.state import find_checkpoint  # loads torch

    checkpoint, _ = find_checkpoint(output.resume, output.run_dir)
    return from_dict(TrainConfig, read_toml(checkpoint / "config.toml"), "checkpoint").seed


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
        raise SettingError(f"T5 tokenizer directory is required. Set --t5_tokenizer_dir.{comfyui_t5()}")
    network_type(values["network_module"], arguments(values))


def comfyui_t5() -> str:
    """Say which folder may be given as --t5_tokenizer_dir, where a ComfyUI is found."""
    found = comfyui_tokenizers()
    return f" ComfyUI's own is {found[1]}." if found else ""


def network_type(module: str, own: dict[str, str]) -> str:
    """Return the type that a --network_module means. Raises SettingError in the words of sd-scripts-anima.

    own: --network_args; LyCORIS has one module for all its types and names the type there.
    """
    from ..adapters.types import ADAPTER_TYPES  # loads torch, which takes seconds: only once the rest is known to be good

    if module == LYCORIS:
        algorithm = own.get("algo", "lora").lower()
        if algorithm in ALGORITHMS:
            return ALGORITHMS[algorithm]
        module = f"{LYCORIS} with algo={algorithm}"
    for kind in ADAPTER_TYPES:
        if module in kind.modules:
            return kind.name
    expected = tuple(kind.modules[0] for kind in ADAPTER_TYPES if kind.modules[0].endswith("_anima"))  # it knows no others
    raise SettingError(f"Unsupported network module: {module}. Expected one of: {expected}")


def flow_config(values: Values, notes: list[str]) -> FlowConfig:
    """Read the flow's flags. --anima_flow_shift is sd-scripts-anima's name for a shifted t; --huber_scale scales --huber_c."""
    found = settings_for(FlowConfig, values)
    found["huber_delta"] *= values["huber_scale"]
    if values["timestep_sampling"] == "sigma":
        found |= sigma_density(values)
    elif found["shift"] != 1 and found["timestep_sampling"] not in ("shift", "mode"):
        word = values["timestep_sampling"]
        notes.append(f"discrete_flow_shift={found['shift']:g} has no effect with timestep_sampling={word}; shift reads it")
    if values["anima_flow_shift"] > 0:
        found |= {"timestep_sampling": "shift", "shift": values["anima_flow_shift"]}
    return FlowConfig(**found)


def sigma_density(values: Values) -> Values:
    """Read timestep_sampling=sigma: u is drawn as weighting_scheme says, and t is shift(1 - u), u = 0 being pure noise.

    So logit_mean changes its sign, and an even density that is shifted is mode's without its bump.
    """
    shifted = values["discrete_flow_shift"] != 1
    if values["weighting_scheme"] == "logit_normal":
        normal = {"logit_mean": 0.0 - values["logit_mean"], "sigmoid_scale": values["logit_std"]}
        return normal | {"timestep_sampling": "shift" if shifted else "logit_normal"}
    if values["weighting_scheme"] == "mode":
        return {"timestep_sampling": "mode"}
    return {"timestep_sampling": "mode", "mode_scale": 0.0} if shifted else {"timestep_sampling": "uniform"}


def network_config(values: Values, explicit: set[str], notes: list[str]) -> NetworkConfig:
    """Read the network's flags and --network_args. A LoKr of two whole factors takes no alpha.

    A file to start from gives what is not said.
    """
    own = known_arguments_of(values, notes)
    module = values["network_module"]
    kind = network_type(module, own)
    found = settings_for(NetworkConfig, values) | {"type": kind} | MODULE_DEFAULTS.get((module, kind), {})
    if found["rank"] >= FULL_MATRIX_RANK:
        found["alpha"] = 0.0
    within = arguments_from(own)
    within["train_norm"] = found.pop("train_norm") or within.get("train_norm", False)
    found |= targets_from(own, within.pop("targets", preset_targets(own, notes))) | within
    if within.get("dora"):
        check_side(own, notes)
    config = NetworkConfig(**(found | network_of_weights(values, explicit | own.keys(), notes)))
    others = [name for name in own if NETWORK_ARGS[name].setting in OF_LOKR and config.type != "lokr"]
    notes += [f"network_args {name} has no effect: a {config.type} has none" for name in others]
    return config


def arguments(values: Values) -> dict[str, str]:
    """Return --network_args by name, without those that front ends wrote for nothing."""
    own = key_values(values["network_args"], "network_args")
    return {name: text for name, text in own.items() if text.lower() not in ("undefined", "null", "none", "nan")}


def known_arguments_of(values: Values, notes: list[str]) -> dict[str, str]:
    """Return the --network_args that set something; note those without effect. Raises SettingError for all others."""
    own = arguments(values)
    unknown = [name for name in own if name not in known_arguments()]
    if unknown:
        raise SettingError(f"network_args: unknown {', '.join(unknown)}; known are {', '.join(NETWORK_ARGS)}")
    for name, text in own.items():
        if name in ARGUMENTS_REFUSED and is_on(text):
            raise SettingError(f"network_args: {name}={text}: {ARGUMENTS_REFUSED[name]}")
        if name in ARGUMENTS_IGNORED and is_on(text):
            notes.append(f"network_args {name} has no effect: {ARGUMENTS_IGNORED[name]}")
    return {name: text for name, text in own.items() if name in NETWORK_ARGS}


def targets_from(own: dict[str, str], targets: str) -> Values:
    """Read which layers are meant. sd-scripts matches include_patterns and exclude_patterns against the whole name."""
    if boolean(own.get("train_llm_adapter", "false"), "train_llm_adapter"):
        targets += "+llm_adapter"
    include = tuple(f"re:^(?:{p})$" for p in python_list(own.get("include_patterns", ""), "include_patterns"))
    exclude = tuple(f"re:^(?:{p})$" for p in python_list(own.get("exclude_patterns", ""), "exclude_patterns"))
    if "target_modules" in own:
        targets, include = "", (*include, *(p.strip() for p in own["target_modules"].split(",") if p.strip()))
    each = {"ranks": "network_reg_dims", "alphas": "network_reg_alphas", "learning_rates": "network_reg_lrs"}
    of_layers = {setting: pairs(own.get(name, ""), name) for setting, name in each.items()}
    return {"targets": targets, "include": include, "exclude": exclude, **of_layers}


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
            raise SettingError(f"network_args: {key}={text}: must be {EXPECTED[KINDS[kind]]}") from None
    return found


def dataset_configs(values: Values, explicit: set[str]) -> tuple[tuple[DatasetConfig, ...], list[str]]:
    """Read a dataset_config file, the [dataset] of a sectioned TOML, or a folder. Flags that were given fill the gaps.

    Given flags that the file overrides, or leaves no room for, are noted.
    """
    flags = {key: key for key in (*SUBSET_KEYS, *DATASET_KEYS, *RANGE, "resolution", "prior_loss_weight")}
    flags |= {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
    given = {key: values[flag] for key, flag in flags.items() if flag in explicit and flag in values}
    if values["dataset_config"]:
        data, where = read_toml(values["dataset_config"]), str(values["dataset_config"])
    elif "inline_datasets" in values:
        data, where = values["inline_datasets"], "[dataset]"
    elif not values["train_data_dir"]:
        raise SettingError("No pictures: set --dataset_config, or --train_data_dir with a folder of captioned pictures.")
    else:
        return (folder_dataset(values, explicit),), []
    datasets, notes = datasets_from(data, given, where)
    names_them = "--dataset_config" if values["dataset_config"] else where
    notes += [f"--{flag} has no effect: {names_them} names the folders" for flag in FOLDERS if flag in explicit]
    notes += [f"--{flags[key]} has no effect where {where} has its own {key}" for key in overridden(data, given)]
    return datasets, notes


def folder_dataset(values: Values, explicit: set[str]) -> DatasetConfig:
    """Read a folder of pictures, and one of regularisation pictures beside it, which has no masks and no metadata file.

    sd-scripts takes repeats and captions from the names of sub-folders; a number that was given is the only one.
    """
    own = settings_for(SubsetConfig, values) | {"folder_numbers": "dataset_repeats" not in explicit} | timestep_range(values)
    subsets = [SubsetConfig(image_dir=values["train_data_dir"], **own)]
    if values["reg_data_dir"]:
        other = {"loss_weight": values["prior_loss_weight"], "is_reg": True, "mask_dir": "", "metadata_file": ""}
        subsets.append(SubsetConfig(image_dir=values["reg_data_dir"], **(own | other)))
    sizes = {"resolutions": (resolution(values["resolution"], "resolution"),)}
    return DatasetConfig(subsets=tuple(subsets), **(settings_for(DatasetConfig, values) | sizes))


def sample_config(values: Values, notes: list[str]) -> SampleConfig:
    """Read the prompts and the previews' flags. Noise is the run's seed."""
    own = settings_for(SampleConfig, values)
    for name, named, all_names in CHOSEN_FLAGS.values():
        own[name], word = named(own[name]), own[name]
        if not own[name]:
            notes.append(f"sample_{name}={word} has no effect: there are {', '.join(all_names)}")
            del own[name]
    if not values["sample_prompts"]:
        return SampleConfig(**own)
    prompts, told = read_prompts(values["sample_prompts"])
    notes += told
    width, height = resolution(values["sample_size"], "sample_size")
    return SampleConfig(prompts=prompts, width=width, height=height, seed=values["seed"], **own)
