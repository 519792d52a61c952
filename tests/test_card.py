"""What a run asks of its device, with fakes: flags and limits that are put back, words and names, older software."""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import threading
import types

import pytest
import torch

from anima_core import cli, train
from anima_core.demo.pictures import write_pictures
from anima_core.errors import RunError, SettingError, is_out_of_memory
from anima_core.models.tokenizers import load_qwen_tokenizer, load_t5_tokenizer
from anima_core.settings import OptimizerConfig
from anima_core.settings.optimizer import OPTIMIZERS
from anima_core.training import device as device_module
from anima_core.training import memory, optimizers, preflight
from anima_core.training.device import at_work, exact_arithmetic, within_its_memory
from anima_core.training.memory import pick_device, vae_tile

from .tiny import train_config

GB = 1e9
CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


@pytest.fixture
def fast():
    """A process in which ComfyUI runs with `--fast`."""
    before = flags()
    set_flags(True, True)
    yield
    set_flags(*before)


def set_flags(sums: bool, benchmark: bool) -> None:
    torch.backends.cuda.matmul.allow_fp16_accumulation, torch.backends.cudnn.benchmark = sums, benchmark


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_fp16_accumulation, torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("fails", [False, True])
def test_flags_for_speed_are_off_while_training_and_back_after(model, pictures, tmp_path, fails):
    seen = []

    def listener(event):
        seen.append(flags())
        if fails and event["event"] == "step":
            raise ValueError("a listener that fails")

    with pytest.raises(ValueError, match="a listener") if fails else contextlib.nullcontext():
        train(train_config(model, pictures, tmp_path), listener)
    assert (False, False) in seen and flags() == (True, True)


def test_an_older_torch_lacks_a_flag(monkeypatch):
    owner = types.SimpleNamespace()
    monkeypatch.setattr(device_module, "OFF_WHILE_TRAINING", ((owner, "allow_fp16_accumulation"),))
    with exact_arithmetic():
        assert vars(owner) == {}


@pytest.fixture
def limits(monkeypatch):
    """Shares of a card of 10 GB, 6 of which are free, that are asked for."""
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GB, 10 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1 * GB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.9)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: asked.append(share))
    return asked


@pytest.mark.parametrize(
    "platform, release, limited", [("win32", "10", 1), ("linux", "5.15-microsoft-WSL2", 1), ("linux", "6.8", 0)]
)
def test_memory_ends_where_windows_would_share_the_hosts(limits, monkeypatch, platform, release, limited):
    monkeypatch.setattr(device_module.sys, "platform", platform)
    monkeypatch.setattr(device_module.platform, "release", lambda: release)
    with contextlib.suppress(RunError), within_its_memory(CUDA):
        raise RunError("in between")
    assert limits == [pytest.approx(0.67), 0.9][: 2 * limited]


@pytest.mark.parametrize("memory_gb, share", [(4.0, 0.45), (100.0, 0.67)])
def test_memory_ends_at_the_budget_of_a_run(limits, monkeypatch, memory_gb, share):
    """What the process holds already is not the run's; what the driver takes for it is."""
    monkeypatch.setattr(device_module.sys, "platform", "linux")
    monkeypatch.setattr(device_module.platform, "release", lambda: "6.8")
    with within_its_memory(CUDA, memory_gb):
        pass
    assert limits == [pytest.approx(share), 0.9]


def test_the_device_is_current_while_it_works(monkeypatch):
    chosen = []

    @contextlib.contextmanager
    def current(device):
        chosen.append(device)
        yield
        chosen.append("before")

    monkeypatch.setattr(torch.cuda, "device", current)
    second = torch.device("cuda:1")
    with at_work(second):
        assert chosen == [second]
    assert chosen == [second, "before"]


def test_the_peak_is_this_runs(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device))
    memory.reset_peak(CUDA)
    memory.reset_peak(torch.device("cpu"))
    assert calls == [CUDA]


# Names, words, older and other software


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_auto_needs_nothing_that_older_versions_of_torch_lack(monkeypatch, kind):
    monkeypatch.delattr(torch, "accelerator")
    monkeypatch.setattr(memory, "_available", lambda asked: asked == kind)
    monkeypatch.setattr(getattr(torch, kind), "current_device", lambda: 1)
    assert pick_device() == torch.device(kind, 1)


def test_directml_is_refused_by_name():
    with pytest.raises(SettingError, match="device=privateuseone:0: DirectML cannot train this model; use a CUDA") as refused:
        pick_device("privateuseone:0")
    assert "auto" not in str(refused.value), "in the graph there is no such choice"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "HIP error: hipErrorOutOfMemory",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
        "MPS backend out of memory (MPS allocated: 9 GB)",
    ],
)
def test_every_device_has_its_words_for_no_memory(text):
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", ["CUDA error: device-side assert triggered", "index 7 is out of bounds", ""])
def test_other_errors_are_not_about_memory(text):
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "kind, tile, taken", [("mps", 1536, 1024), ("mps", 0, 1024), ("mps", 512, 512), ("cuda", 1536, 1536), ("cpu", 0, 0)]
)
def test_metal_takes_smaller_tiles(kind, tile, taken):
    assert vae_tile(torch.device(kind), tile) == taken


@pytest.mark.parametrize(
    "name, times, args",
    [
        ("Adafactor", 1120, ()),
        ("AdamW8bit", 560, ()),
        ("Prodigy", 1120, ("slice_p=11",)),
        ("Prodigy", 0, ()),
        ("AdamW", 0, ()),
        ("AdamWScheduleFree", 0, ()),
    ],
)
def test_optimizers_that_wait_for_the_card_say_how_often(name, times, args):
    config = OptimizerConfig(type=name, learning_rate=1.0, args=args)
    if importlib.util.find_spec(OPTIMIZERS[name].top) is None:
        pytest.skip(f"{OPTIMIZERS[name].package} is not installed")
    warnings = optimizers.preflight(config, CUDA)
    assert [f"{times} times" in text for text in warnings] == [True] * (times > 0)
    assert optimizers.preflight(config, torch.device("cpu")) == []


@pytest.mark.parametrize("length, taken", [(60, True), (240, False)])
@pytest.mark.parametrize("setting", ["output.dir", "train.cache_dir"])
def test_paths_that_windows_does_not_take_are_named_before_anything_is_loaded(
    model, pictures, tmp_path, monkeypatch, length, taken, setting
):
    monkeypatch.setattr(preflight, "longest_path", lambda: len(str(tmp_path)) + 259)
    folder = tmp_path / ("x" * length)
    config = train_config(model, pictures, tmp_path)
    if setting == "output.dir":
        config = dataclasses.replace(config, output=dataclasses.replace(config.output, dir=str(folder)))
    else:
        config = dataclasses.replace(config, cache_dir=str(folder))
    with (
        contextlib.nullcontext()
        if taken
        else pytest.raises(SettingError, match="characters, the system takes.*shorter folder") as refused
    ):
        preflight.preflight(config)
    assert taken or refused.value.field == setting


@pytest.fixture
def no_environment(monkeypatch):
    for name in cli.ALLOCATOR:
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.usefixtures("no_environment")
def test_segments_grow_on_linux_before_torch_is_asked(monkeypatch):
    cli.let_segments_grow()
    assert [os.environ[name] for name in cli.ALLOCATOR] == ["expandable_segments:True"] * 2


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("own", cli.ALLOCATOR)
def test_the_users_own_allocator_wins(monkeypatch, own):
    monkeypatch.setenv(own, "max_split_size_mb:128")
    cli.let_segments_grow()
    assert [os.environ.get(name) for name in cli.ALLOCATOR if name != own] == [None]
    assert os.environ[own] == "max_split_size_mb:128"


@pytest.mark.parametrize("which", ["qwen", "t5"])
def test_tokenizers_may_be_asked_from_several_threads(model, which):
    """Two at once made the library raise "Already borrowed"."""
    from pathlib import Path

    tokenizer = load_t5_tokenizer(model.t5_tokenizer_dir) if which == "t5" else load_qwen_tokenizer(Path(model.qwen).parent)
    inside, together, real = [], [], tokenizer._tokenizer

    class Watched:
        def __call__(self, *args, **kwargs):
            return self.watch(lambda: real(*args, **kwargs))

        def encode_batch(self, texts):
            return self.watch(lambda: real.encode_batch(texts))

        def watch(self, call):
            inside.append(1)
            together.append(len(inside))
            try:
                return call()
            finally:
                inside.pop()

    tokenizer._tokenizer = Watched()
    found = []
    threads = [threading.Thread(target=lambda: found.append(tokenizer.encode(["red circle"] * 50))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(ids == found[0] for ids in found) and max(together) == 1
