"""Installed packages, by what is imported of them."""

import importlib
from functools import cache
from importlib import metadata

from ..settings.optimizer import OptimizerType


def version_of(kind: OptimizerType) -> str:
    """Return the package of an optimizer and its version, as "pytorch-optimizer 4.1.0"; empty where it is not installed."""
    try:
        name = distributions().get(kind.top, (kind.package,))[0]
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return ""


def recorded(kind: OptimizerType) -> str:
    """Return the package and version that a run records and a resumed one compares: of a user's own optimizer beside torch's."""
    return version_of(kind) if kind.own and kind.top != "torch" else ""


@cache
def distributions() -> dict[str, list[str]]:
    """Return the packages that bring each importable name."""
    importlib.invalidate_caches()
    return dict(metadata.packages_distributions())
