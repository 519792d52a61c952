"""Model files: every byte is read once, none is held twice, and a digest is remembered as long as its file is what it was."""

import builtins
import os
import weakref
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anima_core import files
from anima_core.data import index
from anima_core.demo.pictures import write_pictures
from anima_core.errors import FileError
from anima_core.models.checkpoint import FORMATS, load_tensors, read_tensors
from anima_core.models.loading import Layout, Source, load_strict
from anima_core.models.vae import load_vae
from anima_core.training.loop import train
from anima_core.training.model_files import hash_models, recall_digests, remember_digests

from .tiny import train_config


@pytest.fixture
def forgotten(monkeypatch):
    """Forget every digest, as a new process does; believe the times of files that were written a moment ago."""
    monkeypatch.setattr(index, "SETTLED_NS", 0)

    def forget():
        monkeypatch.setattr(files, "_digests", {})

    forget()
    return forget


@pytest.fixture
def read(monkeypatch):
    """Count the bytes of each file that are read whole, to hash or to load it."""
    counts: Counter[str] = Counter()

    class Counting:
        def __init__(self, path, mode):
            self.name, self.file = Path(path).name, builtins.open(path, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            self.file.close()

        def read(self, size):
            data = self.file.read(size)
            counts[self.name] += len(data)
            return data

        def readinto(self, buffer):
            count = self.file.readinto(buffer)
            counts[self.name] += count
            return count

    monkeypatch.setattr(files, "open", Counting, raising=False)
    return counts


def passes(read, *paths: str) -> list[float]:
    """How often each file was read, and begin to count anew."""
    found = [read[Path(path).name] / os.path.getsize(path) for path in paths]
    read.clear()
    return found


def test_a_run_reads_each_model_file_once_and_the_next_one_only_what_is_not_cached(model, tmp_path, forgotten, read):
    write_pictures(tmp_path / "p", 2)
    config = train_config(model, tmp_path / "p", tmp_path, max_train_steps=1)
    three = (model.transformer, model.vae, model.qwen)
    train(config)
    assert passes(read, *three) == [1, 1, 1]
    forgotten()
    train(config)
    assert passes(read, *three) == [1, 0, 0], "what is cached needs no model, and no digest is made again"
    forgotten()
    hash_models(config, tmp_path / "cache", None)
    recalled = passes(read, *three)
    forgotten()
    recall_digests(config, tmp_path / "cache")
    hash_models(config, tmp_path / "cache", None)
    assert (recalled, passes(read, *three)) == ([1, 1, 1], [0, 0, 0])


def test_what_is_hashed_on_the_way_is_what_is_hashed_by_itself(model, forgotten):
    for path in map(Path, (model.transformer, model.vae, model.qwen)):
        assert files.known(path) is None
        for _ in read_tensors(path):
            assert files.known(path) is None, "before all of it was read"
        assert files.known(path) == files.digest(path)


def test_a_file_that_is_not_read_to_its_end_is_not_known(model, forgotten):
    tensors = read_tensors(model.vae)
    next(tensors)
    tensors.close()
    assert files.known(Path(model.vae)) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no time of the last change that programs cannot set")
def test_a_file_that_was_changed_under_its_length_and_time_is_hashed_again(model, tmp_path, forgotten):
    write_pictures(tmp_path / "p", 1)
    config = train_config(model, tmp_path / "p", tmp_path)
    own = tmp_path / "vae.safetensors"
    own.write_bytes(Path(model.vae).read_bytes())
    config = train_config(type(model)(**{**vars(model), "vae": str(own)}), tmp_path / "p", tmp_path)
    hash_models(config, tmp_path, None)
    before, stat = files.known(own), own.stat()
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    os.utime(own, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert before and own.stat().st_mtime_ns == stat.st_mtime_ns
    forgotten()
    recall_digests(config, tmp_path)
    assert files.known(own) is None and files.identity(own) != before
    assert files.known(Path(model.qwen)) is not None


def test_the_digests_of_other_models_in_the_folder_stay_remembered(model, tmp_path, forgotten):
    write_pictures(tmp_path / "p", 1)
    configs = []
    for name in ("one", "two"):
        own = tmp_path / f"{name}.safetensors"
        own.write_bytes(Path(model.vae).read_bytes())
        configs.append(train_config(type(model)(**{**vars(model), "vae": str(own)}), tmp_path / "p", tmp_path))
        files.identity(own)
        remember_digests(configs[-1], tmp_path)
    for config in configs:
        forgotten()
        recall_digests(config, tmp_path)
        assert files.known(Path(config.model.vae)) is not None


# --- reading


def test_every_format_is_read_as_the_library_reads_it(tmp_path):
    path, g = tmp_path / "all.safetensors", torch.Generator().manual_seed(0)
    whole = torch.randint(0, 100, (3, 4), generator=g)
    tensors = {name: whole.to(dtype) for name, dtype in FORMATS.items() if not dtype.is_floating_point}
    tensors |= {name: (whole / 7).to(dtype) for name, dtype in FORMATS.items() if dtype.is_floating_point}
    tensors |= {"scalar": torch.tensor(4.0), "nothing": torch.empty(0, 5), "odd": torch.ones(3, dtype=torch.uint8)}
    safetensors.torch.save_file(tensors, path)
    found, theirs = load_tensors(path), safetensors.torch.load_file(path)
    assert found.keys() == theirs.keys() == tensors.keys()
    for name, tensor in found.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape
        assert tensor.flatten().view(torch.uint8).equal(theirs[name].flatten().view(torch.uint8)), name


def test_a_file_that_is_cut_while_it_is_read_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({name: torch.ones(100_000) for name in "ab"}, path)
    tensors = read_tensors(path)
    next(tensors)
    os.truncate(path, 500_000)
    with pytest.raises(FileError, match="a.safetensors: cannot be read .*it ends too early"):
        next(tensors)


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in it and live: now, and at most."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage) -> None:
        if storage._cdata in self.seen:
            return
        self.seen.add(storage._cdata)
        self.change(storage.nbytes())
        weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())

    def forget(self, number: int, count: int) -> None:
        self.seen.discard(number)
        self.change(-count)

    def change(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)


@pytest.mark.parametrize("dtype, twice", [(torch.float32, 1), (torch.bfloat16, 0)])
def test_loading_reads_the_file_once_and_holds_at_most_one_tensor_twice(tmp_path, forgotten, read, dtype, twice):
    path, side, count = tmp_path / "layers.safetensors", 64, 12
    tensors = {f"{n}.weight": torch.full((side, side), n / 8, dtype=torch.bfloat16) for n in range(count)}
    safetensors.torch.save_file(tensors, path)
    with torch.device("meta"):
        model = nn.ModuleList(nn.Linear(side, side, bias=False) for _ in range(count))
    with Held() as held:
        load_strict(model, [Source(path)], Layout("model", lambda name: name), dtype=dtype, device="cpu")
    assert passes(read, str(path)) == [1]
    assert all(torch.equal(parameter, tensors[name].to(dtype)) for name, parameter in model.named_parameters())
    one = side * side * torch.bfloat16.itemsize
    assert held.now == side * side * dtype.itemsize * count, "what it still holds are the weights"
    assert held.peak <= held.now + twice * one


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux lists the files that a process has mapped")
def test_a_model_that_was_loaded_is_not_mapped(model):
    vae = load_vae(model.vae)
    assert model.vae not in Path("/proc/self/maps").read_text(encoding="utf-8") and vae.dtype == torch.float32


def test_of_a_kernel_whose_last_slice_is_used_the_others_are_let_go(model):
    vae = load_vae(model.vae)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in vae.parameters())
