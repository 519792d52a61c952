"""The blocks of adapters in the workshop: texts of their weights, and the way from Anima's 28 to the 40 of Anima-2.9B."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anima_core.adapters.workshop.block_weights import BlockWeights, by_weight, read_block_weights
from anima_core.adapters.workshop.conversion import INSERTED, PLACES, convert_blocks
from anima_core.adapters.workshop.loaded import LoadedAdapter, of_state
from anima_core.errors import SettingError

from .conftest import relative_error
from .test_analysis import numbers
from .test_workshop import adapter, delta
from .tiny import same_tensors

# ---- weights of blocks


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("", [1, 1, 1, 1]),
        ("0-1=0, 2=0.5", [0, 0, 0.5, 1]),
        ("0-3=0\n1 - 2 = -1", [0, -1, -1, 0]),
        ("0,0.5,1,2", [0, 0.5, 1, 2]),
        ("9,0,0.5,1,2", [0, 0.5, 1, 2]),
    ],
)  # fmt: skip
def test_texts_of_weights(text, wanted):
    found = read_block_weights(text, 4)
    assert [found.of(f"blocks.{n}.mlp.layer1") for n in range(4)] == wanted
    assert found.of("final_layer.linear") == found.of("llm_adapter.blocks.0.x") == (9 if text.startswith("9") else 1)


def test_words_stand_for_what_is_in_no_block():
    found = read_block_weights("llm_adapter=0; other=0.5; 0=2", 4)
    names = ("llm_adapter.blocks.0.mlp.0", "lora_te_layers_0_x", "x_embedder.proj.1", "blocks.0.x", "blocks.1.x")
    assert [found.of(name) for name in names] == [0, 0.5, 0.5, 2, 1]


def test_an_adapters_tensors_are_sorted_by_the_weights_of_their_layers():
    lora = adapter()
    state = lora.state() | {"lora_te_layers_0_x.lora_down.weight": numbers(2, 6), "foreign.lora_down.weight": numbers(2, 6)}
    found = by_weight(state, BlockWeights({0: 0.5}, other=2.0))
    assert {weight: len(part) for weight, part in found.items()} == {0.5: 30, 1.0: 30, 2.0: 2}
    assert by_weight(state, BlockWeights()) == {1.0: state}
    assert all(key.startswith("diffusion_model.blocks.0.") for key in found[0.5])


@pytest.mark.parametrize(
    "text, why",
    [
        ("0-2=x", "a weight is a number"),
        ("0=nan", "a weight is a number"),
        ("4=1", "blocks are 0 to 3"),
        ("2-1=1", "blocks are 0 to 3"),
        ("mid=1", "no block, no range of blocks"),
        ("0=1, 2", "no block|a weight is a number"),
        ("1,1,1", "3 numbers, and the model has 4 blocks; write 4, or 5"),
        ("x", "a weight is a number"),
    ],
)
def test_texts_that_are_no_weights(text, why):
    with pytest.raises(SettingError, match=why):
        read_block_weights(text, 4)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.booleans())
def test_a_list_and_entries_say_the_same(values, with_rest):
    count = len(values) - with_rest
    of_list = read_block_weights(",".join(map(repr, values)), count)
    entries = [f"{n}={value!r}" for n, value in enumerate(values[with_rest:])]
    entries += [f"other={values[0]!r}", f"llm_adapter={values[0]!r}"] if with_rest else []
    if entries and count:
        assert read_block_weights(", ".join(entries), count) == of_list


@given(st.text(max_size=40), st.integers(0, 40))
def test_no_text_does_anything_but_to_be_read_or_refused(text, blocks):
    with contextlib.suppress(SettingError):
        assert isinstance(read_block_weights(text, blocks), BlockWeights)


# ---- 28 and 40 blocks


def of_blocks(count: int, **extra) -> LoadedAdapter:
    state = {}
    for block in range(count):
        for name, shape in (("lora_down.weight", (2, 6)), ("lora_up.weight", (8, 2))):
            state[f"lora_unet_blocks_{block}_mlp_layer1.{name}"] = numbers(*shape, seed=block)
        state[f"lora_unet_blocks_{block}_mlp_layer1.alpha"] = torch.tensor(1.0)
    state["lora_unet_llm_adapter_blocks_2_mlp_0.lora_down.weight"] = numbers(2, 6)
    state["lora_unet_llm_adapter_blocks_2_mlp_0.lora_up.weight"] = numbers(8, 2)
    return of_state(state | extra, {})


def test_the_places_are_those_of_the_models():
    assert len(PLACES) == 28 and [PLACES[n] for n in (0, 1, 2, 14, 27)] == [0, 1, 3, 20, 39]
    assert all(place - 1 in PLACES for place in INSERTED)


def test_there_and_back_is_the_same():
    small = of_blocks(28)
    large = convert_blocks(small, 40)
    assert large.blocks == 40 and len(large.layers) == 29 and large.said == ()
    assert not any(f"blocks.{number}.mlp.layer1" in large.layers for number in INSERTED)
    back = convert_blocks(large, 28)
    assert back.blocks == 28 and list(back.layers) == list(small.layers) and back.key_format == "lora_unet"
    assert all(same_tensors(back.layers[name], small.layers[name]) for name in small.layers)


def test_new_blocks_get_a_copy_or_half_and_give_it_back():
    small = of_blocks(28)
    copy, half = (convert_blocks(small, 40, new) for new in ("copy", "half"))
    assert {copy.blocks, len(copy.layers), half.blocks, len(half.layers)} == {40, 41}
    of_1 = delta(small.layers["blocks.1.mlp.layer1"])
    for found, factor in ((copy, 1.0), (half, 0.5)):
        for block in (1, 2):
            assert relative_error(delta(found.layers[f"blocks.{block}.mlp.layer1"]), factor * of_1) < 1e-6
    added, dropped = convert_blocks(half, 28, dropped="add"), convert_blocks(half, 28)
    for name, tensors in small.layers.items():
        assert relative_error(delta(added.layers[name]), delta(tensors)) < 1e-6
    assert dropped.said[-1] == "12 layers of new blocks are left out"
    assert relative_error(delta(dropped.layers["blocks.1.mlp.layer1"]), 0.5 * of_1) < 1e-6


def test_what_cannot_be_added_to_the_block_before_is_dropped_only():
    whole = {f"lora_unet_blocks_{block}_mlp_layer1.lokr_{n}": numbers(2, 2) for block in range(40) for n in ("w1", "w2")}
    large = of_state(whole)
    assert len(convert_blocks(large, 28).layers) == 28
    with pytest.raises(SettingError, match=r"^blocks.1.mlp.layer1: a lokr, which cannot be added .*; drop the new"):
        convert_blocks(large, 28, dropped="add")


def test_conversions_that_cannot_be():
    with pytest.raises(SettingError, match="is for 28 blocks; to 28 are converted those of 40"):
        convert_blocks(of_blocks(28), 28)
    with pytest.raises(SettingError, match="blocks=30: adapters are converted between 28"):
        convert_blocks(of_blocks(28), 30)
    with pytest.raises(SettingError, match="is for 52 blocks"):
        convert_blocks(of_blocks(52), 40)
    dora = of_blocks(28, **{"lora_unet_blocks_1_mlp_layer1.dora_scale": numbers(1, 6)})
    assert "dora_scale" in convert_blocks(dora, 40).layers["blocks.1.mlp.layer1"]
    with pytest.raises(SettingError, match="a DoRA, whose lengths are those of its own block"):
        convert_blocks(dora, 40, "copy")
