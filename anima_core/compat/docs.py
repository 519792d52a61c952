"""Writes docs/flags.md from the tables that the code itself uses: `python -m anima_core.compat.docs docs/flags.md`."""

# ruff: noqa: E501 (tables)

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.types import ADAPTER_TYPES
from ..errors import in_words
from ..settings import OptimizerConfig
from ..settings.optimizer import OPTIMIZERS
from . import dataset_config, front_ends, root_toml
from .flags import MAPPED, OTHER_DEFAULTS, setting_words
from .lycoris import ALGORITHMS, LYCORIS
from .network_args import MODULE_DEFAULTS, NETWORK_ARGS
from .optimizers import CAME, PRODIGY, WORDS
from .unmapped import ARGUMENTS_IGNORED, ARGUMENTS_REFUSED, IGNORED, REFUSED

HEAD = """# sd-scripts flags and TOML keys

Written from the code by `python -m anima_core.compat.docs docs/flags.md`; a test keeps it in step.

What stands on the command line wins over a file, also when it equals the default. The one exception is the data: what a
dataset_config file or a sectioned file's `[dataset]` says for itself wins over the flags, as in sd-scripts, and each flag
that it overrides is named. A flag or key that is in none of these tables is an error that names the nearest one.

## What differs from sd-scripts and sd-scripts-anima, and why

| there | here | reason |
|---|---|---|
| padding of T5 and Qwen is attended to | masked, pad rows zero | the model was trained so; unmasked padding moves valid embeddings |
| `--anima_seq_len` cuts and pads | always padded to 512, never cut | zero rows are attention sinks: 256 of them are another model |
| adapter in the base model's bf16 | always fp32 | in bf16 a LoKr's updates mostly round away |
| LLM adapter and norms trained by default | frozen; `train_llm_adapter=true`, `--train_norm` | the model's author freezes the LLM adapter: steadier on small sets |
| t always shifted by 3.0 | no shift; `--anima_flow_shift 3` | the model author's recipe |
| latents cached by name | by content | a changed picture, size or VAE is noticed |
| `--resume` restores no adapter weights | everything, exactly | |
| `network_alpha` 100000 is stored | alpha = rank | fp16 cannot hold it |
| `max_bucket_reso` 1024 | 4096 | 1024 would cap both sides of a 1024 px run |
| `enable_bucket` off | on, but for a dataset_config file | pictures keep their shape |
| the nearest bucket by width / height | by its logarithm | portrait and landscape are treated alike |
| `bucket_no_upscale`: pictures are cropped to their bucket | reduced to cover it, then cropped | less is lost |
| `caption_extension` .caption | .txt, and .caption where there is none | captions are .txt nearly everywhere |
| `caption_extension` .json: a file's text | tags by category, in Anima's order: [captions.md](captions.md) | front ends write such captions |
| tags are joined by ", " whatever `caption_separator` is | by the separator | a tag that holds a comma stays one |
| of several lines of a caption the first is read | all; `enable_wildcard` draws one | the others are prose |
| `enable_wildcard`: the prefix stands before the first line only | before each line | a trigger word is meant for all |
| gradient checkpointing forced | as few blocks as fit the memory are recomputed, unless `--gradient_checkpointing` asks for all | speed; no number depends on it |
| `mixed_precision` no | auto: bf16 where the card has it | the base model is stored in bf16 anyway |
| ScheduleFree checks for RAdam only | for all three | the same schedules are wrong for all |
| `--noise_offset` does nothing for Anima | it acts, as `--anima_noise_offset` | a number that is asked for is used |
| `--multires_noise_iterations` does nothing for Anima | it acts, each picture scaled by its own deviation | as for noise_offset |
| `--min_timestep`, `--max_timestep` do nothing for Anima | t is scaled into their range; keys of a subset, too | as in musubi-tuner |
| `random_crop` forbids cached latents | `--crop_variants` places of each picture are cached | no picture is encoded while training |
| Adafactor finds its own step unless `relative_step=False` | its step is `--learning_rate`, unless `relative_step=True` or `--lr_scheduler adafactor` asks for its own | the rate that is set is the rate that trains |
| `constant` with a warm-up is an error | it warms up | as `constant_with_warmup` |
| `polynomial` ends at 1e-7 | at 0 | |
| `--timestep_sampling sigma` draws one of 1000 values of t | any t | the model was trained on all of them |
| `ip_noise_gamma_random_strength` | the same strength in every step | |
| `--huber_schedule` | one width for all t, `--huber_c` times `--huber_scale` | |
| LoRA+ raises the rate of `lokr_w1` in `networks.lokr` | of the factor that starts at zero, `lokr_w2` | as `lora_up` in a LoRA |
| an unknown flag within a prompt is cut off silently | cut off, with a warning | |
| previews: 512 x 512, guidance 7.5, a new seed each | 1024 x 1024, 4.0, `--seed` | what the model draws well; pictures that can be compared |
| `--learning_rate` 2e-6 | 1e-4 | 2e-6 hardly moves an adapter |
| `--seed` by chance | 42 | the same command, the same adapter |
| `--save_precision` fp32 | bf16 | half the size, and ComfyUI's own precision |
| a T5 tokenizer comes along | `--t5_tokenizer_dir` is required, as in sd-scripts-anima | |
| the text encoder trains unless `--network_train_unet_only` | never | not available |
"""


def document() -> str:
    parts = [HEAD]
    for group, flags in MAPPED.items():
        parts.append(f"\n## Mapped: {group}\n\n| flag | default | sets | |\n|---|---|---|---|")
        for flag in flags:
            names = ", ".join(f"`--{name}`" for name in (flag.name, *flag.aliases))
            default = "" if flag.default in ("", ()) else f"`{flag.default}`"
            setting = f"`{flag.setting}`" if flag.setting else ""
            parts.append(f"| {names} | {default} | {setting} | {flag.full_help} |")
    parts.append("\n## Defaults that are not the setting's own\n\n| flag | default | reason |\n|---|---|---|")
    parts += [f"| `--{name}` | `{default}` | {reason} |" for name, (default, reason) in OTHER_DEFAULTS.items()]
    parts += [*optimizer_table(), *network_tables()]
    for title, table in (("Accepted without effect", IGNORED), ("Refused", REFUSED)):
        parts.append(f"\n## {title}\n\n| flag | reason |\n|---|---|")
        parts += [f"| `--{name}` | {reason} |" for name, (_, reason) in table.items()]
    return "\n".join([*parts, *sectioned_tables(), *front_end_tables(), *dataset_tables()]) + "\n"


def optimizer_table() -> list[str]:
    """List what each optimizer starts from without --optimizer_args: its library's own values."""
    here = {name: getattr(OptimizerConfig(), name) for name in ("betas", "weight_decay")}
    parts = ["\n## Without `--optimizer_args`\n"]
    parts.append("Each optimizer starts from its library's own values. A graph starts from " + values_of(here) + ".\n")
    parts.append("| optimizer | |\n|---|---|")
    parts += [f"| {kind.name} | {values_of(here | dict(kind.library))} |" for kind in OPTIMIZERS]
    parts.append(
        "\nAny other optimizer is named as `module.Class` of a package that is installed; sd-scripts' words for some:\n"
    )
    parts.append("| word | |\n|---|---|")
    return parts + [f"| {word} | `{name}` {values_of(own)} |" for word, (name, own) in WORDS.items()]


def values_of(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in settings.items())


def network_tables() -> list[str]:
    parts = ["\n## `--network_module`\n\n| word | type | starts from |\n|---|---|---|"]
    words = [(word, kind.name) for kind in ADAPTER_TYPES for word in kind.modules]
    words += [(f"{LYCORIS}` with `algo={algorithm}", kind) for algorithm, kind in ALGORITHMS.items()]
    for word, kind in words:
        own = MODULE_DEFAULTS.get((word.partition("`")[0], kind), {})
        parts.append(f"| `{word}` | {kind} | {values_of(own)} |")
    parts.append("\n## `--network_args`\n\n| name | sets |\n|---|---|")
    parts += [f"| `{name}` | {in_words(arg.help, setting_words())} |" for name, arg in NETWORK_ARGS.items()]
    parts.append("\nWithout effect, or refused:\n\n| name | reason |\n|---|---|")
    return parts + [f"| `{name}` | {why} |" for name, why in (ARGUMENTS_IGNORED | ARGUMENTS_REFUSED).items()]


def front_end_tables() -> list[str]:
    parts = ["\n## Keys of front ends' files (`--config_file`)\n\n| key | becomes |\n|---|---|"]
    parts += [f"| `{key}` | `--{flag}` |" for key, flag in front_ends.RENAMED.items()]
    parts += [f"| `{key}` | adds to `--{flag}` |" for key, flag in front_ends.LISTS.items()]
    parts += [f"| `{key}` | `--network_args {name}=` |" for key, name in front_ends.ARGUMENTS.items()]
    parts += [f"| `{key}` | `--optimizer_args {name}=` |" for key, name in front_ends.OPTIMIZER.items()]
    parts += [f"| `{key}` | `--optimizer_args {name}=` (Prodigy) |" for key, name in PRODIGY.items()]
    parts += [f"| `{key}` | `--optimizer_args {name}=` (CAME; else without effect) |" for key, name in CAME.items()]
    parts += ["| `positive_prompts` | the previews' prompt |"]
    parts += [f"| `{key}` | `--{flag}` of that prompt |" for key, flag in front_ends.PREVIEWS.items()]
    parts += [f"| `{front_ends.PREFER_JSON}` | true: `--caption_extension .json`, also in a dataset_config file |"]
    parts += ["| `enable_preview` | false: no previews |", "| `lora_type` | `--network_module`, when that is empty |"]
    parts.append("\nWithout effect, or refused:\n\n| key | reason |\n|---|---|")
    without = {key: why for key, why in (front_ends.IGNORED | front_ends.REFUSED).items() if key not in CAME}
    parts += [f"| `{key}` | {why} |" for key, why in without.items()]
    return parts + [f"| `{key} = {word}` | {why} |" for (key, word), why in front_ends.REFUSED_WORDS.items()]


def sectioned_tables() -> list[str]:
    parts = ["\n## Sectioned TOML (`--config`, `--config_file`)\n\n| key | becomes |\n|---|---|"]
    parts += [f"| `{table}.{key}` | `--{flag}` |" for (table, key), flag in root_toml.RENAMED.items()]
    parts += [f"| `{table}.{key}` | `--{key}` |" for table, keys in root_toml.SAME_NAME.items() for key in keys]
    parts += [f"| `dataset.{key}` | dataset_config `{name}` |" for key, name in root_toml.DATASET_KEYS.items()]
    parts += ["| `dataset.data_dir`, `dataset.repeats` | dataset_config `image_dir`, `num_repeats` |"]
    parts += ["| `dataset.caption_tag_dropout_rate`, `training.caption_tag_dropout_rate` | dataset_config, same name |"]
    parts += [
        "| `lora.network_type` | `--network_module`; lora, lokr or loha |",
        "| `lora.lora_name` | `--output_name`, when that is empty |",
    ]
    parts += [
        "| `lora.lora_targets` | `--network_args target_modules=` |",
        "| `lora.train_llm_adapter` | `--network_args`, same name |",
    ]
    parts += [f"| `lora.{key}` | `--network_args`, same name |" for key in root_toml.NETWORK_ARGS]
    parts += [f"| `lora.anima_target_preset = {name}` | `targets={preset}` |" for name, preset in root_toml.PRESETS.items()]
    parts += ["| `optimizer.weight_decay`, `.eps`, `.beta1`, `.beta2` | `--optimizer_args` |"]
    parts += [f"| `optimizer.{key}` | `--optimizer_args {name}=` (Prodigy) |" for key, name in PRODIGY.items()]
    parts.append("\nWithout effect:\n\n| key | reason |\n|---|---|")
    parts += [f"| `{table}.{key}` | {why} |" for (table, key), why in root_toml.WITHOUT_EFFECT.items()]
    parts += [f"| `[{table}]` | {why} |" for table, why in root_toml.TABLES_WITHOUT_EFFECT.items()]
    return parts


def dataset_tables() -> list[str]:
    parts = ["\n## dataset_config\n\n| key | setting |\n|---|---|"]
    parts += [f"| `{key}` | `subset.{key}` |" for key in dataset_config.SUBSET_KEYS]
    parts += [f"| `{key}` | `dataset.{key}` |" for key in dataset_config.DATASET_KEYS]
    own = dataset_config.OWN_SUBSET_KEYS | dataset_config.OWN_DATASET_KEYS | dataset_config.RULED_KEYS
    parts += [f"| `{key}` | {f'`{setting}`' if setting else ''} |" for key, setting in own.items()]
    parts.append("\nWithout effect:\n\n| key | reason |\n|---|---|")
    parts += [f"| `{key}` | {why} |" for key, why in dataset_config.WITHOUT_EFFECT.items()]
    return parts


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
