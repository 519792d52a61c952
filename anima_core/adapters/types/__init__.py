"""The types of adapters: each module of this folder is one, and defines it as `TYPE`."""

from importlib import import_module
from pkgutil import iter_modules

from ...settings.registry import Registry
from ..adapter_type import AdapterType

ADAPTER_TYPES: Registry[AdapterType] = Registry(
    "network.type", [import_module(f".{module.name}", __name__).TYPE for module in iter_modules(__path__)]
)
