"""Installed packages, by what is imported of them."""

from functools import cache
from importlib import metadata

from ..settings.optimizer import OptimizerType


def version_of(kind: OptimizerType) -> str:
    """Return the package of an optimizer and its version, as "pytorch-optimizer 4.1.0"; empty where it is not installed."""
    if kind.top not in distributions():
        distributions.cache_clear()  # it may have been installed since
    try:
        name = distributions().get(kind.top, (kind.package,))[0]
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return ""


def recorded(kind: OptimizerType) -> str:
    """Return the package and version that a run records and a resumed one compares; empty for an optimizer that needs none."""
    return version_of(kind) if kind.versioned else ""


@cache
def distributions() -> dict[str, list[str]]:
    """Return the packages that bring each importable name."""
    return dict(metadata.packages_distributions())
