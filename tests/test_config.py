"""Settings: what is refused, in which words, and that nothing is lost on the way to a file and back."""

import math

import pytest
import toml

from anima_core.errors import SettingError
from anima_core.settings import (
    DatasetConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    SubsetConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from anima_core.settings.toml_file import dump_toml


def config(**changes) -> TrainConfig:
    base = dict(
        model=ModelConfig("a", "b", "c", "d"),
        datasets=(DatasetConfig((SubsetConfig("x"), SubsetConfig("y", num_repeats=3)), resolutions=((512, 768), (64, 64))),),
        network=NetworkConfig(ranks=("re:blocks.0=16", "mlp=0"), include=("a", "b")),
    )
    return TrainConfig(**(base | changes))


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: NetworkConfig(rank=0), "rank=0"),
        (lambda: NetworkConfig(dropout=1.0), "network.dropout=1.0: must be at least 0 and below 1"),
        (lambda: NetworkConfig(ranks=("mlp",)), "write it as pattern=number"),
        (lambda: OptimizerConfig(learning_rate=math.nan), "learning_rate=nan"),
        (lambda: OptimizerConfig(learning_rate=0), "learning_rate=0"),
        (lambda: OptimizerConfig(type="sgdd"), "optimizer.type=sgdd: must be one of"),
        (lambda: OptimizerConfig(scheduler="cosin"), "optimizer.scheduler=cosin: must be one of"),
        (lambda: DatasetConfig((SubsetConfig("x"),), batch_size=0), "batch_size=0"),
        (lambda: DatasetConfig((SubsetConfig("x"),), resolutions=((1000, 1000),), enable_bucket=False), "multiples of 16"),
        (lambda: DatasetConfig(()), "at least one folder"),
        (lambda: OutputConfig(name="../x"), "plain file name"),
        (lambda: OutputConfig(name="a:b"), "plain file name"),
        (lambda: OutputConfig(name="風" * 61), "at most 180 bytes"),
        (lambda: config(max_train_steps=0), "max_train_steps=0"),
        (lambda: config(gradient_accumulation_steps=0), "gradient_accumulation_steps=0"),
    ],
)
def test_bad_settings_are_refused_by_name(make, text):
    with pytest.raises(SettingError, match=text):
        make()


@pytest.mark.parametrize("name", ["RAdamScheduleFree", "radam_schedulefree", "RADAM_ScheduleFree"])
def test_schedule_free_in_the_documented_words(name):
    cases = [
        (dict(scheduler="cosine"), "optimizer=RAdamScheduleFree requires lr_scheduler=constant"),
        (dict(warmup_steps=10), "optimizer=RAdamScheduleFree requires lr_warmup_steps=0"),
        (dict(warmup_ratio=0.1), "optimizer=RAdamScheduleFree requires lr_warmup_ratio=0"),
    ]
    for settings, text in cases:
        with pytest.raises(SettingError) as refused:
            OptimizerConfig(type=name, **settings)
        assert str(refused.value) == text
    assert OptimizerConfig(type=name).type == "RAdamScheduleFree"


def test_a_config_survives_toml():
    original = config()
    assert from_dict(TrainConfig, toml.loads(dump_toml(to_dict(original)))) == original


def test_wrong_keys_and_types_name_their_place():
    data = to_dict(config())
    with pytest.raises(SettingError, match=r"config\.network: unknown setting rnak"):
        from_dict(TrainConfig, data | {"network": {"rnak": 4}})
    with pytest.raises(SettingError, match=r"config\.network\.rank='four': must be a whole number"):
        from_dict(TrainConfig, data | {"network": {"rank": "four"}})
    with pytest.raises(SettingError, match=r"config\.seed=True"):
        from_dict(TrainConfig, data | {"seed": True})
