"""Which folders and files of the server a graph may name.

Whoever can queue a graph is not always the owner of the machine. So what a user types is confined to ComfyUI's own input,
output and models folders and everything registered in extra_model_paths.yaml; the owner may allow more.
"""

import os

import folder_paths

from ..anima_core.errors import SettingError
from ..anima_core.models.tokenizers import comfyui_tokenizers
from ..anima_core.settings import TrainConfig, walk, with_paths

ENVIRONMENT = "ANIMA_TRAINER_ROOTS"  # more folders, separated as in PATH; * allows everything
NOT_DATA = ("custom_nodes",)


def roots() -> list[str]:
    """List the folders that may be read. An empty entry is left out: it would mean the one the server was started in."""
    registered = [
        folder for kind, entry in folder_paths.folder_names_and_paths.items() if kind not in NOT_DATA for folder in entry[0]
    ]
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.models_dir]
    more = os.environ.get(ENVIRONMENT, "").split(os.pathsep)
    return [os.fspath(folder) for folder in (*own, *registered, *(comfyui_tokenizers() or ()), *more) if folder]


def allowed(path: str, setting: str) -> str:
    """Return `path` if it lies in one of the roots; else raise SettingError, before the disk is asked whether it exists.

    The path is compared as it is written, `..` resolved: a link that the owner put into a root may lead out of it, and no
    network share is contacted.
    """
    if "\0" in path:
        raise SettingError(f"{setting}={path!r}: holds a NUL character, which no path may; write another")
    if is_allowed(path):
        return path
    raise SettingError(
        f"{setting}={path!r}: outside of the folders that this server reads; move it into ComfyUI's input folder, or let the "
        f"server's owner add its folder to extra_model_paths.yaml (datasets) or to {ENVIRONMENT}"
    )


def is_allowed(path: str) -> bool:
    places = roots()
    return "*" in places or any(
        is_inside(os.path.abspath(path), root)
        for folder in places
        for root in (os.path.abspath(folder), os.path.realpath(folder))
    )


def is_inside(path: str, root: str) -> bool:
    path, root = os.path.normcase(path), os.path.normcase(root)
    try:
        return os.path.commonpath([path, root]) == root
    except ValueError:  # another drive
        return False


def user_path(name: str, setting: str, *beside: str) -> str:
    """Find a folder or file as a user types it. Raises SettingError for one outside of the roots.

    A full path; or from one of these on, the first in which it exists: the folders of the files that name it (`beside`),
    ComfyUI's input, its datasets, its output, that of the runs. Or with their names before: `datasets/mine`.
    """
    name = name.strip().strip('"')
    path = os.path.expanduser(name)
    if os.path.isabs(path):
        return allowed(path, setting)
    first, *others = [*beside, *(folder for folders in typed_from().values() for folder in folders)]
    places = [allowed(os.path.join(first, path), setting)]
    places += [os.path.join(folder, path) for folder in others]
    head, _, rest = path.replace(os.sep, "/").partition("/")
    places += [os.path.join(folder, rest) for folder in typed_from().get(head, [])]
    return next((place for place in places if is_allowed(place) and os.path.exists(place)), places[0])


def user_file(name: str, setting: str) -> str:
    """Find a file as a user types it. Raises SettingError for none."""
    if not name.strip():
        raise SettingError(f"{setting}={name!r}: name a file")
    return user_path(name, setting)


def typed_from() -> dict[str, list[str]]:
    """Return the folders from which a user's paths start, by the name that they have in ComfyUI's own folder."""
    datasets = folder_paths.folder_names_and_paths.get("datasets", ([],))[0]
    output = folder_paths.get_output_directory()
    own = {"input": [folder_paths.get_input_directory()], "datasets": list(datasets)}
    return own | {"output": [output, os.path.join(output, "anima_trainer")]}


def find_paths(config: TrainConfig, *beside: str) -> TrainConfig:
    """Return a run whose paths are full: those that files in `beside` name as a user would. Raises SettingError."""
    return with_paths(config, lambda path, name: user_path(path, f"`{name}`", *beside))


def check_config(config: TrainConfig) -> TrainConfig:
    """Refuse a run that reads a path outside of the roots. Raises SettingError."""
    for found in walk(config):
        if found.facts.path == "read" and found.value:
            allowed(found.value, f"`{found.name}`")
    return config
