"""sd-scripts' words for attention: those that name what is installed are taken, the others are told."""

import pytest

from .test_flags import FOLDER, REQUIRED, request


@pytest.mark.parametrize(
    "argv, attention, notes",
    [
        ([], "sdpa", []),
        (["--sdpa"], "sdpa", []),
        (["--attn_mode", "torch"], "sdpa", []),
        (["--attention", "auto", "--xformers"], "auto", ["--xformers has no effect beside --attention auto"]),
        (["--attention", "sdpa", "--sdpa"], "sdpa", []),
        (["--attn_mode", "flash"], "sdpa", ["--attn_mode=flash has no effect: the package flash_attn is not installed; "]),
        (["--use_flash_attn"], "sdpa", ["--flash_attn has no effect: the package flash_attn is not installed; "]),
        (["--use_sage_attn"], "sdpa", ["--use_sage_attn has no effect: SageAttention has no backward pass; "]),
        (["--mem_eff_attn"], "sdpa", ["--mem_eff_attn has no effect: it would take no less memory; "]),
        (
            ["--attn_mode", "flex"],
            "sdpa",
            ["--attn_mode=flex has no effect: known are torch, sdpa, xformers, flash, sageattn; "],
        ),
        (["--split_attn"], "sdpa", ["--split_attn has no effect: the pictures of a batch have one size"]),
        (["--anima_attention_backend", "sdpa", "--xformers"], "sdpa", []),
    ],
)
def test_sd_scripts_words_for_attention(argv, attention, notes):
    """Front ends write them into every file: none that is not there refuses a run."""
    found = request(*REQUIRED, *FOLDER, *argv)
    assert found.config.attention == attention
    said = [note for note in found.notes if "attention" in note or "attn" in note]
    assert len(said) == len(notes) and all(one.startswith(start) for one, start in zip(said, notes))


@pytest.mark.parametrize("flag, package", [("--xformers", "xformers"), ("--flash_attn", "flash_attn")])
def test_an_attention_that_is_installed_is_used(monkeypatch, flag, package):
    monkeypatch.setattr("anima_core.compat.attention.find_spec", lambda name: name == package)
    assert request(*REQUIRED, *FOLDER, flag).config.attention == package
