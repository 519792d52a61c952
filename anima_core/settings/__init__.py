"""Every setting, declared once, and how settings are read and written."""

from .data import DatasetConfig, SubsetConfig
from .flow import FlowConfig
from .held_out import HeldOutConfig
from .metadata import MetadataConfig
from .network import NetworkConfig
from .optimizer import OptimizerConfig
from .prior import PriorConfig
from .samples import SampleConfig
from .serial import from_dict, to_dict
from .setting import walk, with_paths
from .train import ModelConfig, OutputConfig, TrainConfig

__all__ = [
    "DatasetConfig",
    "FlowConfig",
    "HeldOutConfig",
    "MetadataConfig",
    "ModelConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "OutputConfig",
    "PriorConfig",
    "SampleConfig",
    "SubsetConfig",
    "TrainConfig",
    "from_dict",
    "to_dict",
    "walk",
    "with_paths",
]
