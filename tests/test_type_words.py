"""The words of sd-scripts, LyCORIS and lora-scripts for LoHa, DoRA and T-LoRA."""

# ruff: noqa: E501 (one line for each case)

import pytest

from anima_core.errors import SettingError

from .test_flags import FOLDER, REQUIRED, config, request


@pytest.mark.parametrize(
    "argv, read",
    [
        (["--network_module", "networks.loha", "--network_dim", "8"], lambda n: (n.type, n.rank, n.dora) == ("loha", 8, False)),
        (["--network_module", "networks.tlora_anima"], lambda n: (n.type, n.tlora_min_rank, n.tlora_schedule) == ("lora", 1, "cosine")),
        (["--network_module", "networks.tlora_anima", "--network_args", "tlora_min_rank=4", "tlora_rank_schedule=linear"], lambda n: (n.tlora_min_rank, n.tlora_schedule) == (4, "linear")),
        (["--network_args", "tlora_min_rank=2", "tlora_alpha_rank_scale=2"], lambda n: (n.tlora_min_rank, n.tlora_alpha, n.tlora_schedule) == (2, 2.0, "linear")),
        (["--network_module", "lycoris.kohya", "--network_args", "algo=loha", "preset=attn-only", "dora_wd=True", "wd_on_output=False"], lambda n: (n.type, n.targets, n.dora) == ("loha", "attn", True)),
    ],
)  # fmt: skip
def test_words_that_act(argv, read):
    assert read(config(*argv).network)


@pytest.mark.parametrize(
    "argv, text",
    [
        (["--network_args", "dora_wd=True", "wd_on_output=True"], "wd_on_output=True: ComfyUI divides lengths of outputs"),
        (["--network_args", "tlora_min_rank=1", "tlora_orthogonal_init=True"], "True: T-LoRA starts as a LoRA does"),
        (["--network_module", "networks.lokr", "--network_args", "tlora_min_rank=1"], "=1: only the ranks of a plain lora"),
    ],
)
def test_words_that_are_refused(argv, text):
    with pytest.raises(SettingError) as refused:
        config(*argv)
    assert text in str(refused.value)


def test_a_preset_that_names_no_layers_of_anima_is_told():
    notes = request(
        *REQUIRED, *FOLDER, "--network_module", "lycoris.kohya", "--network_args", "preset=unet-convblock-only"
    ).notes
    assert any("network_args preset has no effect: unet-convblock-only names no layers of Anima" in note for note in notes)
