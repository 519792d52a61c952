"""k steps, a cancel, new objects, the rest: the bits of a run in one go, whatever is switched on."""

from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from anima_core import train
from anima_core.demo.pictures import write_pictures
from anima_core.errors import Interrupted
from anima_core.settings import FlowConfig, NetworkConfig, OptimizerConfig, OutputConfig, PriorConfig, SampleConfig

from .tiny import same_tensors, train_config

STEPS = 9


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three shapes, so three buckets, some with leftovers; masks beside."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "p", 7)
    (folder / "masks").mkdir()
    for path in sorted((folder / "p").glob("*.png"))[::2]:
        Image.linear_gradient("L").save(folder / "masks" / path.name)
    return folder


def configurations(folder) -> dict[str, dict]:
    varied = dict(shuffle_caption=True, caption_tag_dropout_rate=0.3, caption_dropout_rate=0.2, keep_tokens=1, flip_aug=True)
    previews = SampleConfig(prompts=("red circle",), width=64, height=64, steps=2, cfg=2.0, every_n_steps=2, at_first=True)
    dropped = NetworkConfig(rank=4, alpha=2, dropout=0.2, rank_dropout=0.2, module_dropout=0.2, train_norm=True)
    prodigy = OptimizerConfig(type="Prodigy", learning_rate=1.0, scheduler="linear")
    return {
        "LoKr, ScheduleFree, EMA, accumulation": dict(
            network=NetworkConfig(type="lokr", rank=4, alpha=4, factor=4),
            optimizer=OptimizerConfig(type="RAdamScheduleFree", learning_rate=2e-3),
            ema_decay=0.9,
            gradient_accumulation_steps=3,
        ),
        "every caption and picture option, masks, two resolutions, prior preservation": dict(
            subset=varied | dict(mask_dir=str(folder / "masks"), num_repeats=2),
            dataset=dict(resolutions=((64, 64), (96, 96)), batch_size=3),
            caption_variants=3,
            prior=PriorConfig(masked=0.5, weight=0.5, trigger="circle", class_words="shape"),
        ),
        "captions encoded on the fly, LLM adapter trained": dict(
            subset=varied,
            caption_variants=0,
            network=NetworkConfig(rank=2, alpha=2, targets="attn+llm_adapter"),
            cache_text=False,
        ),
        "dropout of every kind, norms, recomputation, previews": dict(network=dropped, memory="recompute", samples=previews),
        "LoHa, DoRA, dropout, EMA": dict(
            network=NetworkConfig(type="loha", rank=2, alpha=2, dora=True, rank_dropout=0.2), ema_decay=0.9, memory="recompute"
        ),
        "T-LoRA, accumulation": dict(
            network=NetworkConfig(rank=4, alpha=2, tlora_min_rank=1, tlora_schedule="cosine"), gradient_accumulation_steps=2
        ),
        "Prodigy, shifted t, Huber, noise offset, latents in memory": dict(
            optimizer=prodigy,
            flow=FlowConfig(timestep_sampling="shift", shift=3.0, loss="huber", noise_offset=0.1, weighting="cosmap"),
            cache_latents=False,
            max_train_epochs=2,
        ),
        "ranges of t, drawn crops, coarse noise, smaller noisy pictures, dropout": noisy_and_cropped(folder),
    }


def noisy_and_cropped(folder) -> dict:
    return dict(
        subset=dict(random_crop=True, max_timestep=0.9, timestep_offset=0.5, flip_aug=True, mask_dir=str(folder / "masks")),
        dataset=dict(enable_bucket=False, batch_size=3),
        flow=FlowConfig(lowres_scale=0.5, lowres_above=0.5, weighting="min_snr", multires_noise_iterations=3),
        network=NetworkConfig(rank=4, alpha=2, dropout=0.2),
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8), ids=list(configurations(Path())))
def test_resume_is_exact_in_eight_configurations(model, pictures, tmp_path, number):
    """Cut twice, after the first step and later."""
    changes = list(configurations(pictures).values())[number]
    settings = dict(max_train_steps=STEPS) | changes

    def config(name: str, resume: str = ""):
        copies = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
        output = OutputConfig(str(tmp_path / name), "test", save_dtype="fp32", resume=resume)
        return train_config(model, pictures / "p", tmp_path / name, output=output, **copies)

    def cancel_at(step: int):
        return lambda e: "cancel" if e["event"] == "step" and e["step"] == step else None

    whole = train(config("whole"))
    for step, resume in ((1, ""), (5, "latest")):
        with pytest.raises(Interrupted):
            train(config("parts", resume), cancel_at(step))
        newest = max((tmp_path / "parts" / "test-run" / "checkpoints").iterdir())
        assert step <= int(newest.name.removeprefix("step-")) < whole.steps
    resumed = train(config("parts", "latest"))
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))
    assert resumed.losses == whole.losses and resumed.steps == whole.steps
