"""Weights and inputs of blocks in host memory: no number of a step depends on it, however late copies arrive."""

import dataclasses
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.random_transformer import TINY, random_state
from anima_core.models.frozen import FloatWeight, FrozenLinear, FrozenWeight, Scratch
from anima_core.models.int8 import rounded
from anima_core.models.quantised import fp8, int8
from anima_core.models.transformer import AnimaTransformer, modulations
from anima_core.settings import NetworkConfig
from anima_core.speed.forms import LEVELS, apply_away, apply_levels, make_lean
from anima_core.speed.stream import ALIGNED, PLACES, Away, Piece, Ring, Streaming
from anima_core.speed.transfer import Direct, Transfer

from .test_recompute import inputs

BLOCKS = 5
SIZES = dataclasses.replace(TINY, blocks=BLOCKS)
NETWORKS = {
    "lora": NetworkConfig(rank=4, alpha=4),
    "lokr": NetworkConfig(type="lokr", factor=4, full_matrix=True),
    "dropout": NetworkConfig(rank=4, alpha=4, dropout=0.2),
    "some layers": NetworkConfig(rank=4, alpha=4, targets="mlp", exclude=("re:blocks.0",)),
}
EVERYTHING = Away(BLOCKS, adaln=True)
CPU = torch.device("cpu")


class Late(Transfer):
    """Copies arrive when they are waited for and not before; until then there is NaN where they go."""

    def host(self, size: int) -> Tensor:
        return torch.full((size,), 0xFF, dtype=torch.uint8)

    def fetch(self, into: Tensor, source: Tensor) -> Callable[[], None]:
        into.fill_(0xFF)
        storage, place, size = weakref.ref(source.untyped_storage()), source.storage_offset(), source.numel()
        due = [into]

        def arrive() -> None:
            if due and (bytes_there := storage()) is not None:  # what was let go before it was copied is lost
                whole = torch.empty(0, dtype=torch.uint8).set_(bytes_there)
                due.pop().copy_(whole[place : place + size])

        return arrive

    def store(self, into: Tensor, source: Tensor) -> Callable[[], None]:
        return self.fetch(into, source)

    def settle(self) -> None:
        """Nothing is under way."""


class Int8(FrozenWeight):
    kind = "int8"
    q: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("q", (weight / scale).round().to(torch.int8))

    def write(self, into: Tensor) -> None:
        into.copy_(self.q)
        into.mul_(self.scale)


def built(network: str = "lora", stored: str = "float") -> tuple[AnimaTransformer, AdapterNetwork]:
    """A model in lean functions whose modulation is made block by block, and its network."""
    model = AnimaTransformer(SIZES)
    model.load_state_dict(random_state(SIZES, torch.Generator().manual_seed(0)))
    model.requires_grad_(False)
    if stored != "float":
        scratch = Scratch(torch.float32, CPU)
        for block in list(model.blocks)[1:-1] if stored == "outer floats" else model.blocks:
            for parent in (block.self_attn, block.cross_attn, block.mlp):
                for name, layer in list(parent.named_children()):
                    if isinstance(layer, torch.nn.Linear):
                        setattr(parent, name, FrozenLinear(Int8(layer.weight), scratch))
    adapters = AdapterNetwork.inject(model, NETWORKS[network], 0)
    adapters.parameter_groups(1e-4, 0.0)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in adapters.zero_init_parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    make_lean(model)
    model.modulations = modulations
    return model, adapters


def step(model: AnimaTransformer, adapters: AdapterNetwork) -> list[Tensor]:
    """Velocities and gradients of two micro-batches."""
    for parameter in adapters.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found = []
    for number in range(2):
        with adapters.micro_batch(number):
            velocity = model(*inputs())
            velocity.square().mean().backward()
        found.append(velocity.detach())
    return [*found, *(p.grad for p in adapters.parameters() if p.grad is not None)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def streamed(model: AnimaTransformer, away: Away, transfer: Transfer | None = None) -> Streaming:
    streaming = Streaming(model, transfer or Late())
    apply_away(model, streaming, away)
    return streaming


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stored", ["float", pytest.param("int8", marks=pytest.mark.long), "outer floats"])
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_those_of_resident_weights_to_the_bit(network, stored, level):
    model, adapters = built(network, stored)
    resident = step(model, adapters)
    assert all(tensor.isfinite().all() for tensor in resident) and any(tensor.any() for tensor in resident[2:])
    for away in (EVERYTHING, Away(3), Away(0, adaln=True)):
        model, adapters = built(network, stored)
        apply_levels(model, [level] * BLOCKS, Late())
        streamed(model, away)
        assert same(step(model, adapters), resident), away


def test_levels_and_places_may_differ_from_block_to_block():
    model, adapters = built()
    resident = step(model, adapters)
    for levels in (LEVELS, LEVELS[::-1], ("offload", "keep", "offload", "offload", "keep")):
        for away in (EVERYTHING, Away(2), Away(1)):
            model, adapters = built()
            apply_levels(model, levels, Late())
            streamed(model, away)
            assert same(step(model, adapters), resident)


@pytest.mark.parametrize("level", LEVELS)
def test_each_block_is_moved_at_most_twice_in_a_micro_batch(level):
    model, adapters = built()
    apply_levels(model, [level] * BLOCKS, Late())
    streaming = streamed(model, EVERYTHING)
    step(model, adapters)
    assert streaming.rings["blocks"].moves <= 2 * 2 * BLOCKS
    assert streaming.rings["adaln"].moves <= 2 * BLOCKS + 1, "the first one of the next micro-batch is on its way"
    before = streaming.rings["blocks"].moves
    step(model, adapters)
    assert streaming.rings["blocks"].moves - before == 2 * 2 * (BLOCKS - PLACES), "what is there still is not moved again"


@pytest.mark.parametrize("stored", ["float", "outer floats"])
def test_a_preview_between_two_micro_batches_changes_nothing(stored):
    """It ends at the last block and begins at the first: two large ones that have no room beside one another."""
    model, adapters = built("lora", stored)
    resident = step(model, adapters)
    model, adapters = built("lora", stored)
    streaming = streamed(model, EVERYTHING)
    ring = streaming.rings["blocks"]
    assert ring.fit(0, BLOCKS - 1) == (stored == "float")
    with torch.no_grad():
        first, second = model(*inputs()), model(*inputs())
    assert torch.equal(first, resident[0]) and torch.equal(first, second)
    for _ in range(2):
        assert same(step(model, adapters), resident)
        with torch.no_grad():
            assert torch.equal(model(*inputs()), resident[0])


def test_large_pieces_cost_their_size_once():
    """float32 outer blocks beside int8: the room is that of one of each."""
    streaming = streamed(built("lora", "outer floats")[0], EVERYTHING)
    sizes = [piece.size for (kind, _), piece in sorted(streaming.pieces.items()) if kind == "blocks"]
    assert sizes[0] > 3 * sizes[1] and len(streaming.rings["blocks"].room) <= sizes[0] + sizes[1] + 2 * ALIGNED


def test_only_the_places_are_on_the_device():
    """All that the open pieces consist of lies in the places, and the closed ones have nothing."""
    model, adapters = built()
    streaming = streamed(model, EVERYTHING)
    seen = []

    def look() -> None:
        tensors = [module.get_buffer(name) for piece in streaming.pieces.values() for module, name in piece.buffers]
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
        seen.append(sum(held.values()))
        assert held.keys() <= {place.data_ptr() for place in streaming.tensors}

    for block in model.blocks:
        block.mlp.layer1.base.register_forward_pre_hook(lambda *_: look())
        block.mlp.register_forward_pre_hook(lambda *_: look())
    step(model, adapters)
    large, small = (max(p.size for (kind, _), p in streaming.pieces.items() if kind == name) for name in ("blocks", "adaln"))
    there = sum(t.nbytes for t in streaming.tensors)
    assert seen and max(seen) <= there <= PLACES * (large + small + 2 * ALIGNED)


def test_a_weight_fails_outside_its_turn():
    model, _ = built("lora", "float")
    streaming = streamed(model, EVERYTHING)
    x = torch.randn(3, SIZES.width)
    layers = [model.blocks[1].self_attn.q_proj, model.blocks[1].adaln_modulation_mlp[1]]
    for layer in layers:
        with pytest.raises(RuntimeError):
            layer(x)
    streaming.rings["blocks"].enter(1)
    streaming.rings["adaln"].enter(1)
    for layer in layers:
        assert layer(x).isfinite().all()
    streaming.rings["blocks"].enter(2)
    with pytest.raises(RuntimeError):
        layers[0](x)


def test_a_quantised_weight_fails_outside_its_turn():
    model, _ = built("lora", "int8")
    streamed(model, EVERYTHING)
    with pytest.raises(RuntimeError):
        model.blocks[1].mlp.layer1(torch.randn(3, SIZES.width))


def test_previews_between_steps_see_the_same_and_disturb_nothing():
    model, adapters = built()
    with torch.no_grad():
        picture = model(*inputs())
    resident = step(model, adapters)
    streaming = streamed(model, EVERYTHING)
    first = step(model, adapters)
    with torch.no_grad():
        model(*inputs())
        moves = streaming.rings["blocks"].moves
        assert torch.equal(model(*inputs()), picture)
        assert streaming.rings["blocks"].moves - moves <= BLOCKS
    assert same(first, resident) and same(step(model, adapters), resident)


class OutOfMemory(RuntimeError):
    pass


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("at", range(1, 12, 2))
def test_a_step_that_fails_anywhere_is_repeated(level, at):
    """As when memory runs out, in the forward pass, the backward one, or while a block runs again."""
    model, adapters = built()
    resident = step(model, adapters)
    transfer = Late()
    apply_levels(model, [level] * BLOCKS, transfer)
    streaming = streamed(model, EVERYTHING, transfer)
    calls, real = 0, Ring.enter

    def fails(ring: Ring, *given) -> None:
        nonlocal calls
        calls += ring is streaming.rings["blocks"]
        if calls == at:
            raise OutOfMemory
        real(ring, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ring, "enter", fails)
        with pytest.raises(OutOfMemory):
            step(model, adapters)
    assert same(step(model, adapters), resident)


def test_what_is_away_may_change_between_steps():
    model, adapters = built()
    resident = step(model, adapters)
    streaming = Streaming(model, Late())
    for away in (Away(2), Away(4, adaln=True), EVERYTHING, Away(1, adaln=True), Away(), Away(3)):
        apply_away(model, streaming, away)
        assert len(streaming.pieces) == away.blocks + BLOCKS * away.adaln
        assert same(step(model, adapters), resident)


def test_an_ejected_model_keeps_its_layers_and_they_stream():
    model, adapters = built()
    with torch.no_grad(), adapters.disabled():
        bare = model(*inputs())
    streamed(model, EVERYTHING)
    adapters.eject()
    with torch.no_grad():
        assert torch.equal(model(*inputs()), bare)


def test_a_graph_may_be_gone_through_twice():
    model, adapters = built()
    apply_levels(model, ["offload"] * BLOCKS, Late())
    streamed(model, EVERYTHING)
    loss = model(*inputs()).square().mean()
    parameters = [p for p in adapters.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert same(list(first), list(torch.autograd.grad(loss, parameters)))


def test_inputs_of_several_graphs_are_parked_side_by_side():
    model, adapters = built()
    parameters = [p for p in adapters.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(*inputs()).square().mean(), parameters)
    apply_levels(model, ["offload"] * BLOCKS, Late())
    first = model(*inputs()).square().mean()
    second = model(*inputs(1)).square().mean()
    assert same(list(torch.autograd.grad(first, parameters)), list(expected))
    second.backward()


def test_parked_inputs_take_their_rooms_again():
    model, adapters = built()
    transfer = Late()
    made = []
    transfer.host = lambda size: made.append(size) or Late.host(transfer, size)
    apply_levels(model, ["offload"] * BLOCKS, transfer)
    for _ in range(3):
        step(model, adapters)
    assert len(made) == BLOCKS and len(set(made)) == 1


def test_pieces_are_packed_to_the_byte():
    weights = [Int8(torch.randn(6, 10)), Int8(torch.randn(3, 7))]
    before = [buffer.clone() for weight in weights for buffer in weight.buffers()]
    piece = Piece(weights, CPU, Direct(CPU))
    assert piece.size == 64 + 64 + 64 + 21 and all(span.begin % 64 == 0 for span in piece.spans)
    assert all(buffer.numel() == 0 for weight in weights for buffer in weight.buffers())
    piece.settle(CPU)
    assert same([buffer for weight in weights for buffer in weight.buffers()], before)


def stored_weights() -> list[FrozenWeight]:
    """A weight of each kind that a model may hold, of numbers of their own."""
    plain = torch.randn(16, 256)
    bytes_of = (plain * 40).round().to(torch.int8)
    scales = torch.rand(16) + 0.5
    eight = plain.to(torch.float8_e4m3fn)
    return [
        FloatWeight(plain.bfloat16()),
        rounded(plain, 1),
        rounded(plain, 2),
        fp8.Float8(eight, scales),
        fp8.CastFloat8(eight),
        int8.plain(bytes_of, torch.tensor(0.5)),
        int8.RotatedInt8(bytes_of, scales, 16),
    ]


@pytest.mark.parametrize("number", range(len(stored_weights())))
def test_a_weight_streams_however_it_is_stored(number):
    weight, other = stored_weights()[number], stored_weights()[number]
    scratch, expected = Scratch(torch.float32, CPU), torch.empty(weight.shape)
    weight.write(expected)
    ring = Ring([Piece([stored], CPU, Late()) for stored in (weight, other, FloatWeight(torch.zeros(1)))], CPU, Late())
    for index in (0, 1, 2, 0):
        ring.enter(index, (index + 1) % 3)
    assert torch.equal(weight.tensor(scratch).float(), expected) and expected.any()
    ring.enter(1)
    with pytest.raises((RuntimeError, IndexError)):
        F.linear(torch.ones(1, 256), weight.tensor(scratch))
