"""The transformer and its LLM adapter: against ComfyUI, alone, and from every kind of file."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core.demo.random_transformer import TINY, random_state, write_random_transformer
from anima_core.errors import FileError, SettingError
from anima_core.models.transformer import AnimaTransformer, image_rope, load_transformer

from .conftest import relative_error


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    write_random_transformer(path)
    return path


@pytest.fixture(scope="module")
def model(file) -> AnimaTransformer:
    return load_transformer(file)


def inputs(batch=2, h=8, w=12, rows=512):
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 16, h, w, generator=g),
        torch.rand(batch, generator=g),
        torch.randn(batch, rows, TINY.context_dim, generator=g),
    )


def test_matches_comfyui(model, comfyui_oracle):
    g = torch.Generator().manual_seed(2)
    pictures = [inputs(2, 8, 12), inputs(1, 18, 6, rows=600), inputs(1, 4, 244)]  # the last is 1952 px wide
    captions = [(17, 23), (1, 1), (600, 610)]
    tensors = {f"w.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, (latents, t, context) in enumerate(pictures):
        tensors |= {f"latents.{i}": latents, f"t.{i}": t, f"context.{i}": context}
    for i, (s, n) in enumerate(captions):
        tensors[f"qwen.{i}"] = torch.randn(1, s, TINY.llm_adapter.source_dim, generator=g)
        tensors[f"ids.{i}"] = torch.randint(0, 32100, (1, n), generator=g)
    adapter = TINY.llm_adapter
    theirs = comfyui_oracle(
        "oracle_transformer.py",
        tensors,
        captions=len(captions),
        pictures=len(pictures),
        dit=dict(
            model_channels=TINY.width,
            num_blocks=TINY.blocks,
            num_heads=TINY.width // TINY.head_dim,
            crossattn_emb_channels=TINY.context_dim,
            adaln_lora_dim=TINY.adaln_dim,
        ),
        adapter=dict(
            source_dim=adapter.source_dim,
            target_dim=adapter.target_dim,
            model_dim=adapter.width,
            num_layers=adapter.blocks,
            num_heads=adapter.width // adapter.head_dim,
        ),
    )
    for i, picture in enumerate(pictures):
        assert relative_error(model(*picture), theirs[f"velocity.{i}"]) < 1e-5
    for i in range(len(captions)):
        ours = model.preprocess_text_embeds(tensors[f"qwen.{i}"], tensors[f"ids.{i}"])
        assert ours.shape[1] == max(512, captions[i][1])
        assert relative_error(ours, theirs[f"text.{i}"]) < 1e-5


def test_padding_in_a_batch_changes_nothing(model):
    """Captions of 1, 40 and 600 tokens in one batch give each what it gets alone, and so do their velocities."""
    g = torch.Generator().manual_seed(3)
    lengths = [(1, 1), (31, 40), (590, 600)]
    hidden = [torch.randn(1, s, 64, generator=g) for s, _ in lengths]
    ids = [torch.randint(2, 32000, (1, n), generator=g) for _, n in lengths]
    alone = [model.preprocess_text_embeds(q, i) for q, i in zip(hidden, ids)]
    longest_s, longest_n = 590, 600
    batch_hidden = torch.full((3, longest_s, 64), 7.0)  # junk where padding is
    batch_ids = torch.full((3, longest_n), 5)
    for row, (q, i) in enumerate(zip(hidden, ids)):
        batch_hidden[row, : q.shape[1]] = q
        batch_ids[row, : i.shape[1]] = i
    masks = [torch.arange(m) < torch.tensor([length[k] for length in lengths])[:, None] for k, m in ((0, 590), (1, 600))]
    together = model.preprocess_text_embeds(batch_hidden, batch_ids, *masks)
    latents, t, _ = inputs(3)
    text_lengths = torch.tensor([a.shape[1] for a in alone])
    velocity = model(latents, t, together, text_lengths)
    for row, single in enumerate(alone):
        assert relative_error(together[row, : lengths[row][1]], single[0, : lengths[row][1]]) < 1e-5
        assert torch.count_nonzero(together[row, lengths[row][1] :]) == 0
        assert relative_error(velocity[row], model(latents[row : row + 1], t[row : row + 1], single)[0]) < 1e-5


def test_extra_zero_rows_do_matter(model):
    """Why pads are counted: zeros take part in the softmax, so 600 rows are not 512 rows."""
    latents, t, context = inputs(1)
    longer = torch.nn.functional.pad(context, (0, 0, 0, 88))
    assert relative_error(model(latents, t, longer), model(latents, t, context)) > 1e-3
    assert relative_error(model(latents, t, longer, torch.tensor([512])), model(latents, t, context)) < 1e-5


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_close_and_returns_fp32(file, model, dtype, limit):
    half = load_transformer(file, dtype=dtype)
    velocity = half(*inputs())
    assert velocity.dtype == torch.float32
    assert relative_error(velocity, model(*inputs())) < limit


def test_fp16_keeps_the_residual_stream_in_fp32(file):
    """Residuals of this model pass 65504: an fp16 stream would be infinite."""
    half = load_transformer(file, dtype=torch.float16)
    half.blocks[0].mlp.layer2.weight.mul_(500)
    seen = []
    half.blocks[0].register_forward_hook(lambda module, args, out: seen.append((out.dtype, out.abs().max().item())))
    half.x_embedder.register_forward_hook(lambda module, args, out: out.clamp(-1, 1) * 65000)
    assert half(*inputs()).isfinite().all()
    assert seen[0][0] == torch.float32 and seen[0][1] > 65504


def test_rope_is_fp32_and_its_table_is_the_formula():
    cos, sin = image_rope(3, 5, 128, torch.device("cpu"))
    assert cos.dtype == sin.dtype == torch.float32 and cos.shape == (15, 1, 64)
    theta = 10000 * 4 ** (42 / 40)
    row, column = 2, 3
    angles = [0.0] * 22 + [row / theta ** (2 * i / 42) for i in range(21)] + [column / theta ** (2 * i / 42) for i in range(21)]
    assert torch.allclose(cos[row * 5 + column, 0], torch.tensor(angles).cos(), atol=1e-6)
    assert torch.allclose(sin[row * 5 + column, 0], torch.tensor(angles).sin(), atol=1e-6)


def test_odd_latents_are_refused(model):
    with pytest.raises(SettingError, match="multiples of 16"):
        model(torch.zeros(1, 16, 7, 8), torch.zeros(1), torch.zeros(1, 512, 64))


def test_released_sizes_count_685_tensors():
    from anima_core.demo.random_transformer import REAL

    with torch.device("meta"):
        real = AnimaTransformer(REAL)
    assert len(real.state_dict()) == 685
    assert real.config.blocks == 28


@pytest.mark.parametrize("prefix", ["net.", "model.diffusion_model.", "diffusion_model.", "", "model.diffusion_model.net."])
def test_every_prefix_loads(tmp_path, model, prefix):
    path = tmp_path / "m.safetensors"
    write_random_transformer(path, prefix=prefix)
    other = load_transformer(path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    assert not any(p.requires_grad for p in other.parameters())


def test_more_blocks_are_counted(tmp_path):
    path = tmp_path / "m.safetensors"
    write_random_transformer(path, dataclasses.replace(TINY, blocks=5))
    assert len(load_transformer(path).blocks) == 5


def change(file, tmp_path, edit):
    state = load_file(file)
    edit(state)
    path = tmp_path / "changed.safetensors"
    save_file(state, path)
    return path


def test_missing_tensor_is_named(file, tmp_path):
    path = change(file, tmp_path, lambda s: s.pop("net.blocks.1.mlp.layer2.weight"))
    with pytest.raises(FileError, match=r"1 tensors .* missing, first blocks\.1\.mlp\.layer2\.weight"):
        load_transformer(path)


def test_unexpected_tensor_is_named(file, tmp_path):
    path = change(file, tmp_path, lambda s: s.update({"net.blocks.0.extra.weight": torch.zeros(1)}))
    with pytest.raises(FileError, match=r"first blocks\.0\.extra\.weight"):
        load_transformer(path)


def test_buffers_of_exporters_are_left_out_and_integers_without_a_scale_are_refused(file, tmp_path):
    load_transformer(change(file, tmp_path, lambda s: s.update({"net.pos_embedder.seq": torch.zeros(2)})))
    name = "net.blocks.0.mlp.layer1.weight"
    path = change(file, tmp_path, lambda s: s.update({name: s[name].to(torch.int8)}))
    with pytest.raises(FileError, match="is quantised in a way that is not read .*layer1"):
        load_transformer(path)


def test_wrong_file_in_the_slot_says_what_it_is(tmp_path):
    path = tmp_path / "qwen.safetensors"
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(FileError, match="not an Anima transformer.*text encoder"):
        load_transformer(path)


def test_truncated_missing_and_pickled_files(file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(FileError, match="truncated, 1,000 bytes"):
        load_transformer(cut)
    with pytest.raises(FileError, match="no such file"):
        load_transformer(tmp_path / "none.safetensors")
    pickled = tmp_path / "model.ckpt"
    torch.save({"a": torch.zeros(1)}, pickled)
    with pytest.raises(FileError, match="pickle"):
        load_transformer(pickled)
    renamed = tmp_path / "model.safetensors"
    renamed.write_bytes(pickled.read_bytes())
    with pytest.raises(FileError, match="pickle"):
        load_transformer(renamed)
    text = tmp_path / "text.safetensors"
    text.write_text("hello, this is not a model at all", encoding="utf-8")
    with pytest.raises(FileError, match="not a safetensors file"):
        load_transformer(text)


def test_same_seed_same_weights():
    a, b = (random_state(TINY, torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)
