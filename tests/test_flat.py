"""Parameters, gradients, moments and averages in one tensor a rate group: the bits and files of each layer by itself."""

import functools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from anima_core import train
from anima_core.adapters.flat import ALIGNED, Flat
from anima_core.adapters.formats import adapter_state, load_into, save_adapter
from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.pictures import write_pictures
from anima_core.errors import CheckpointError
from anima_core.models.transformer import load_transformer
from anima_core.settings import NetworkConfig, OptimizerConfig, OutputConfig
from anima_core.settings.optimizer import OPTIMIZERS
from anima_core.speed.counting import Meter
from anima_core.training import loop
from anima_core.training.optimizers import step_if_finite
from anima_core.training.state import fresh_state
from anima_core.training.watchdog import Watchdog

from .test_optimizers import RATES, installed
from .tiny import same_tensors, train_config

pytestmark = pytest.mark.slow

ELEMENT_WISE = [
    pytest.param(kind.name, marks=pytest.mark.skipif(not installed(kind.name), reason=f"{kind.package} is not installed"))
    for kind in OPTIMIZERS
    if kind.element_wise and kind.name != "Prodigy"
]
needs_prodigy = pytest.mark.skipif(not installed("Prodigy"), reason="prodigyopt is not installed")
GROUPS = NetworkConfig(
    rank=4, alpha=2, loraplus_lr_ratio=4, learning_rates=("mlp.layer1=1e-3", "re:cross_attn=0"), train_norm=True
)
LOKR = NetworkConfig(type="lokr", rank=3, alpha=3, factor=4, decompose_both=True)


class Trained:
    """A state that steps on gradients drawn for each layer. poisoned: steps with a NaN; same: each step's are the first's."""

    def __init__(
        self, model, flat: bool, name: str = "AdamW", network=GROUPS, fp16=False, ema=0.9, poisoned=(), same=False
    ) -> None:
        self.network = AdapterNetwork.inject(load_transformer(model.transformer), network, 0)
        config = OptimizerConfig(type=name, learning_rate=RATES.get(name, 0.01), weight_decay=0.1)
        self.state = fresh_state(self.network, config, fp16, ema, flat)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.poisoned, self.same = poisoned, same

    def step(self, number: int) -> None:
        generator, state = torch.Generator().manual_seed(0 if self.same else number), self.state
        for parameter in self.parameters:
            loss = (parameter * torch.randn(parameter.shape, generator=generator)).sum()
            state.gradient.backward(loss * math.nan if number in self.poisoned and parameter is self.parameters[3] else loss)
        step_if_finite(state.optimizer, state.ema, state.gradient.finish(1.0))
        state.gradient.zero()
        state.step += 1

    def steps(self, *numbers: int) -> "Trained":
        for number in numbers:
            self.step(number)
        return self

    def saved(self, folder) -> dict[str, torch.Tensor]:
        self.state.save(folder, "")
        return load_file(folder / "state.safetensors")

    def adapter(self) -> dict[str, torch.Tensor]:
        """What a user gets."""
        with self.state.saved_weights():
            return adapter_state(self.network)


@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("network", [GROUPS, LOKR], ids=["lora-groups-norms", "lokr"])
@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_the_bits_are_those_of_each_layer_by_itself(model, tmp_path, name, network, fp16):
    """With LoRA+, rates by pattern, frozen layers, norms, EMA, a loss scale, and steps that are left out, the first one too."""
    flat, plain = (Trained(model, form, name, network, fp16, poisoned=(0, 3)).steps(*range(6)) for form in (True, False))
    assert same_tensors(flat.adapter(), plain.adapter())
    assert same_tensors(flat.saved(tmp_path / "flat"), plain.saved(tmp_path / "plain"))
    files = [json.loads((tmp_path / form / "state.json").read_text()) for form in ("flat", "plain")]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", [*ELEMENT_WISE, "Adafactor"])
@pytest.mark.parametrize("before, after", [(False, True), (True, False), (True, True)])
def test_a_checkpoint_of_either_form_is_continued_by_either(model, tmp_path, name, before, after):
    """The slow form is the one that wrote checkpoints before there was the other."""
    whole = Trained(model, False, name).steps(*range(6))
    Trained(model, before, name).steps(*range(3)).saved(tmp_path / "half")
    second = Trained(model, after, name)
    second.state.load(tmp_path / "half")
    second.steps(*range(3, 6))
    assert same_tensors(whole.adapter(), second.adapter())
    assert same_tensors(whole.saved(tmp_path / "whole"), second.saved(tmp_path / "second"))
    lengths = [len(group["params"]) for group in second.state.optimizer.param_groups]
    assert (max(lengths) == 1) is (after and name != "Adafactor")


@needs_prodigy
@pytest.mark.parametrize("before, after", [(False, True), (True, False), (True, True)])
def test_prodigy_finds_the_same_step_size_but_for_rounding(model, tmp_path, before, after):
    """Its sums are over all numbers at once, else one for each tensor. `before` wrote the checkpoint that `after` continues."""
    made = functools.partial(Trained, model, name="Prodigy", network=NetworkConfig(rank=4, alpha=2, train_norm=True), same=True)
    whole, second = made(flat=False).steps(*range(6)), made(flat=after)
    written = made(flat=before).steps(*range(3)).saved(tmp_path / "half")
    second.state.load(tmp_path / "half")
    second.steps(*range(3, 6))
    found, expected = second.state.optimizer.param_groups[0], whole.state.optimizer.param_groups[0]
    assert found["d"] == pytest.approx(expected["d"], rel=1e-5) and found["d"] > 2e-6, "from 1e-6"
    assert (len(found["params"]) == 1) is after and len(expected["params"]) > 1
    a, b = second.adapter(), whole.adapter()
    assert all(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-9) for key in a)
    dimensions = {key.split(".")[2]: tensor.ndim for key, tensor in written.items() if key.startswith("optimizer.1.")}
    assert dimensions == {"exp_avg": 2, "exp_avg_sq": 2, "s": 1, "p0": int(before)}  # 1 is of a factor that began at zero


@needs_prodigy
def test_prodigy_that_looks_at_a_part_of_each_tensor_gets_each(model):
    network = AdapterNetwork.inject(load_transformer(model.transformer), NetworkConfig(rank=4), 0)
    config = OptimizerConfig(type="Prodigy", learning_rate=1.0, args=("slice_p = 11",))
    state = fresh_state(network, config, fp16=False)
    assert len(state.optimizer.param_groups[0]["params"]) == len(list(network.parameters())) and not state.flats


@pytest.mark.parametrize("flat", [True, False])
def test_a_rate_that_would_join_groups_of_a_checkpoint_is_refused(model, tmp_path, flat):
    """A changed learning rate is allowed; here it is the one that some layers have by a pattern."""
    by_pattern = NetworkConfig(rank=4, learning_rates=("mlp.layer1=1e-3",))
    Trained(model, flat, network=by_pattern).saved(tmp_path / "two")
    network = AdapterNetwork.inject(load_transformer(model.transformer), by_pattern, 0)
    state = fresh_state(network, OptimizerConfig(learning_rate=1e-3), fp16=False, flat=flat)
    with pytest.raises(CheckpointError, match="optimizer.learning_rate now gives one rate to layers .*; set the one before"):
        state.load(tmp_path / "two")


@pytest.mark.parametrize("name", [*ELEMENT_WISE, pytest.param("Prodigy", marks=needs_prodigy)])
def test_moments_are_there_before_the_first_step_and_nothing_has_moved(model, name):
    """Made in the first step they would lie between activations for the rest of the run."""
    network = NetworkConfig(rank=4) if name == "Prodigy" else GROUPS
    untouched = AdapterNetwork.inject(load_transformer(model.transformer), network, 0).state_dict()
    trained = Trained(model, True, name, network)
    state, optimizer = trained.state, trained.state.optimizer
    assert same_tensors(trained.network.state_dict(), untouched)

    def moments() -> list[int]:
        """Where they are; the counter is none."""
        return [v.data_ptr() for own in optimizer.state.values() for k, v in own.items() if k != "step"]

    assert all(own.get("step", 0) == 0 for own in optimizer.state.values())
    before = moments()
    trained.steps(0, 1)
    assert len(before) >= len(state.flats) and moments() == before
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1] * len(state.flats)


def launches(trained: Trained) -> int:
    """Count those from the whole gradient to the next step's: clipping, optimizer, average, zeroing."""
    trained.step(0)
    state = trained.state
    with Meter() as seen:
        step_if_finite(state.optimizer, state.ema, state.gradient.finish(1.0))
        state.gradient.zero()
    return seen.launches


@pytest.mark.parametrize("name", [*ELEMENT_WISE, pytest.param("Prodigy", marks=needs_prodigy)])
def test_a_step_launches_as_much_for_many_layers_as_for_few(model, name):
    few = NetworkConfig(rank=4, include=("blocks.0.mlp.layer1",), targets="")
    assert launches(Trained(model, True, name, few)) == launches(Trained(model, True, name, NetworkConfig(rank=4))) < 50


def sizes() -> list[nn.Parameter]:
    """Some that are no multiple of what each begins at."""
    return [nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (8, 4), (1,), (2, 2, 3))]


def test_a_change_of_either_is_one_of_both():
    parameters = sizes()
    before = [p.detach().clone() for p in parameters]
    flat = Flat(parameters)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before)), "they keep their numbers"
    assert all((p.data_ptr() - flat.whole.data_ptr()) % (ALIGNED * 4) == 0 for p in parameters)
    with torch.no_grad():
        flat.whole.add_(1.0)
        assert all(torch.equal(p, b + 1) for p, b in zip(parameters, before))
        parameters[1].zero_()
        nn.ParameterList(parameters).load_state_dict({"0": torch.zeros(3, 5)}, strict=False)
    pieces = flat.split(flat.whole.detach())
    assert not pieces[0].any() and not pieces[1].any() and torch.equal(pieces[3], before[3] + 1)
    assert torch.equal(flat.split(flat.join(before))[2], before[2])


def test_a_gradient_of_a_layer_is_one_of_the_whole():
    parameters = sizes()
    flat = Flat(parameters)
    flat.whole.grad = torch.zeros_like(flat.whole)
    flat.share_gradient()
    sum((p * p).sum() for p in parameters).backward()
    assert torch.equal(flat.whole.grad[:15], 2 * flat.whole[:15]) and not flat.whole.grad[15:16].any()
    assert all(torch.equal(p.grad, 2 * p) for p in parameters)


def test_a_network_in_one_tensor_loads_ejects_and_comes_back_like_any(model, tmp_path):
    trained, other = Trained(model, True).steps(0, 1), Trained(model, True)
    save_adapter(tmp_path / "a.safetensors", adapter_state(trained.network), {})
    load_into(other.network, tmp_path / "a.safetensors")
    assert all(torch.equal(a.whole, b.whole) for a, b in zip(trained.network.flat, other.network.flat))
    assert same_tensors(trained.network.host_state(), dict(trained.network.state_dict()))
    with torch.no_grad():
        dog = Watchdog(other.network, good_step=2)
        other.network.flat[1].whole[3] = math.nan
        assert dog.restore_if_broken() == 2 and torch.equal(trained.network.flat[1].whole, other.network.flat[1].whole)
    assert not any(isinstance(module, AdapterNetwork) for module in other.network.eject().modules())


def test_copies_to_the_host_are_one_a_group(model):
    network = Trained(model, True).network
    copies = {tensor.untyped_storage().data_ptr() for tensor in network.host_state().values()}
    frozen = sum(not p.requires_grad for p in network.parameters())
    assert len(network.flat) > 2 and frozen and len(copies) == len(network.flat) + frozen


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


@pytest.mark.parametrize("name", ["AdamW", "RAdamScheduleFree", "Adafactor"])
def test_a_whole_run_writes_the_same_files(model, pictures, tmp_path, monkeypatch, name):
    """Adapter and checkpoint, with micro-batches, dropouts and EMA."""
    results = []
    for form in (True, False):
        monkeypatch.setattr(loop, "build_state", functools.partial(loop.build_state, flat=form))
        network = NetworkConfig(rank=4, dropout=0.2, rank_dropout=0.2, loraplus_lr_ratio=4)
        output = OutputConfig(str(tmp_path / str(form)), "test", save_dtype="fp32")
        optimizer = OptimizerConfig(type=name, learning_rate=2e-3)
        changes = dict(network=network, optimizer=optimizer, ema_decay=0.9, gradient_accumulation_steps=2, max_train_steps=4)
        results.append(train(train_config(model, pictures, tmp_path / str(form), output=output, **changes)))
        monkeypatch.undo()
    assert results[0].losses == results[1].losses
    assert same_tensors(*(load_file(result.adapter_path) for result in results))
    checkpoints = [next((result.run_dir / "checkpoints").iterdir()) / "state.safetensors" for result in results]
    assert same_tensors(*map(load_file, checkpoints))
