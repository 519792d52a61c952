"""What may differ between a checkpoint and the run that continues it, as each setting declares it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..data.folder import Picture
from ..errors import AnimaError, CheckpointError, SettingError
from ..settings import TrainConfig, from_dict, walk
from ..settings.optimizer import OPTIMIZERS
from ..settings.toml_file import read_toml
from .packages import recorded
from .state import CROSSED_EPOCHS, read_content, read_plain

# Settings that are paths, and what a checkpoint calls their content. The folders of pictures are "the data".
CONTENTS = {
    "model.transformer": "content of the transformer",
    "model.vae": "content of the VAE",
    "model.qwen": "content of the Qwen",
    "model.llm_adapter": "content of the LLM adapter",
    "model.t5_tokenizer_dir": "content of the T5 tokenizer",
    "network.weights": "content of the adapter to start from",
}
PACKAGE = "package of the optimizer"  # what a checkpoint calls it, where that is compared


def contents(
    config: TrainConfig, pictures: Sequence[Sequence[Picture]], held_out: Sequence[Sequence[Picture]]
) -> dict[str, str]:
    """Hash what a run is made from: its files, and the pictures with their captions and masks, in order, held out or not.

    With the name and version of the optimizer's package, for those of which another version may go on otherwise.
    """
    paths = {found.name: found.value for found in walk(config) if found.name in CONTENTS and found.value}
    named = {CONTENTS[name]: files.identity(path) for name, path in paths.items()}
    named["content of the data"] = content_of_pictures(pictures)
    if any(held_out):
        named["content of the held-out pictures"] = content_of_pictures(held_out)
    package = recorded(OPTIMIZERS[config.optimizer.type])
    return named | ({PACKAGE: package} if package else {})


def content_of_pictures(pictures: Sequence[Sequence[Picture]]) -> str:
    """Hash the pictures of each dataset with their captions, repeats and masks."""
    data = hashlib.sha256()
    for group in pictures:
        for p in group:
            mask = files.digest(p.mask_path) if p.mask_path else ""
            data.update(json.dumps([p.digest, *p.captions, p.repeats, mask]).encode())
        data.update(b"\n")
    return data.hexdigest()


def compare_with(checkpoint: Path, config: TrainConfig, content: dict[str, str]) -> list[str]:
    """Return the differences as warnings.

    Raises SettingError for a difference that cannot work, and for one that can unless it is allowed.
    """
    former = settings_of(checkpoint)
    before, now = compared(former) | read_content(checkpoint), compared(config) | content
    names = {found.place: found.name for both in (former, config) for found in walk(both)}
    differences, fixed = [], fixed_places(config)
    for place in sorted(before.keys() | now.keys()):
        if before.get(place) == now.get(place):
            continue
        differences.append(difference(place, names.get(place), before.get(place), now.get(place)))
        if place in fixed:
            way_out = "start a new run, or start one from the adapter file with `network.weights`"
            raise SettingError(f"resume: {differences[-1]}; this cannot continue: {way_out}")
    if differences and not config.output.resume_with_changes:
        listed = ", ".join(differences[:3])
        way_out = "allow it with `output.resume_with_changes`, and it continues with the new ones"
        raise SettingError(f"resume: {len(differences)} settings differ ({listed}); {way_out}")
    if config.gradient_accumulation_steps > 1 and read_plain(checkpoint)["version"] == CROSSED_EPOCHS:
        differences.append("a step ends with its epoch now, and averages what is left of it")
    return [f"resumed with a change: {text}" for text in differences]


def settings_of(checkpoint: Path) -> TrainConfig:
    """Return the settings that a checkpoint was written with. Raises CheckpointError for those of another version."""
    try:
        return from_dict(TrainConfig, read_toml(checkpoint / "config.toml"), "checkpoint")
    except AnimaError as error:
        raise CheckpointError(error.text) from None


def compared(config: TrainConfig) -> dict[str, Any]:
    """Return the value of each setting that counts, by place. Files are compared by content, wherever they are."""
    return {found.place: found.value for found in walk(config) if found.facts.resume != "free" and not found.facts.path}


def fixed_places(config: TrainConfig) -> set[str]:
    """Return the places whose values a checkpoint's tensors depend on, and what it calls such a file's content."""
    return {CONTENTS.get(found.name, found.place) for found in walk(config) if found.facts.resume == "fixed"}


def difference(place: str, name: str | None, before: Any, now: Any) -> str:
    """Tell what differs. name: of the setting at that place, None for a file's content."""
    if place == PACKAGE:
        return f"{place} was {before}, now {now}"
    if name is None:
        return f"{place} is not what it was"
    where = f" ({place})" if "[" in place else ""
    return f"`{name}`{where} was {before!r}, now {now!r}"
