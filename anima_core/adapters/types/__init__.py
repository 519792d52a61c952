"""The types of adapters: each module of this folder is one, and defines it as `TYPE`. Of each there are DoRAs, too."""

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from ...settings.registry import Registry
from .. import dora
from ..adapter_type import AdapterType


def entry(module: str) -> AdapterType:
    kind: AdapterType = import_module(f".{module}", __name__).TYPE
    return replace(kind, delta=dora.of_files(kind.delta))


ADAPTER_TYPES: Registry[AdapterType] = Registry("network.type", [entry(module.name) for module in iter_modules(__path__)])
