"""What a training node does around a run, without a ComfyUI: which run a file means, what is said of one that fails."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from .comfyui.pack import import_nodes
from .test_node_texts import Bar, Interrupt, stand_in
from .tiny import model_config

STORE = Path("output", "anima_trainer")
CONFIG = SimpleNamespace(output=SimpleNamespace(adapter_dir=str(Path("models", "loras", "a-sweep"))))


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """-> a function from the name of a module of nodes/ to that module; ComfyUI's own are only looked at."""
    found = import_nodes(tmp_path, monkeypatch)
    monkeypatch.setenv("ANIMA_TRAINER_ROOTS", str(tmp_path))
    stand_in(monkeypatch, "comfy_api.latest", io=MagicMock(Input=object, ComfyNode=object))
    stand_in(monkeypatch, "comfy_execution.graph", ExecutionBlocker=object)
    flag = dict(processing_interrupted=lambda: False, InterruptProcessingException=Interrupt)
    stand_in(monkeypatch, "comfy.model_management", **flag)
    stand_in(monkeypatch, "comfy.sd")
    stand_in(monkeypatch, "comfy.utils", ProgressBar=Bar)
    return found


@pytest.fixture
def running(nodes, monkeypatch):
    """-> nodes.running, for which the GPU is free."""
    module = nodes("running")
    monkeypatch.setattr(module.bridge, "gpu_for_training", nullcontext)
    return module


def failing(running, monkeypatch, checkpoint: Path, **listener) -> str:
    """Return what a node says of a run that had written a checkpoint and then went wrong."""

    def train(config, on_event):
        on_event({"event": "checkpoint", "step": 25, "path": str(checkpoint / "checkpoints" / "step-00000025")})
        raise running.RunError("out of memory")

    monkeypatch.setattr(running, "train", train)
    with running.bridge.NodeListener("12", **listener) as heard, pytest.raises(running.RunError) as error:
        running.train_now(None, "key", None, heard)
    return error.value.text


def test_a_failed_run_is_said_to_continue_where_its_checkpoint_is_looked_for(running, monkeypatch, tmp_path):
    """One that was rescued to another disk, since its own is full, is named by a warning; Run does not go on from it."""
    own, elsewhere = tmp_path / STORE / "x-run", tmp_path / "tmp" / "x-run"
    assert failing(running, monkeypatch, own) == "out of memory; saved at step 25, Run continues from there"
    assert failing(running, monkeypatch, elsewhere) == "out of memory"
    over = failing(running, monkeypatch, own, goes_on_by_itself=False)
    assert over == "out of memory; saved at step 25, Continue Anima Run continues from there"


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("step, checkpoint, stays", [(0, False, False), (0, True, True), (3, False, True)])
def test_a_run_that_was_ended_before_its_first_step_leaves_nothing(
    running, monkeypatch, tmp_path, cancelled, step, checkpoint, stays
):
    """It would be listed for ever as one that cannot go on, and keep its name from the next."""
    folder = running.run_store().run_folder("x")
    folder.mkdir(parents=True)
    running.run_store().write(running.run_store().unfinished_record("key"), {"name": "x", "result_version": 1})
    if checkpoint:
        (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000002" / "state.json").write_text("{}", encoding="utf-8")

    def train(config, on_event):
        on_event.training.folder, on_event.step, on_event.is_cancelled = folder, step, cancelled
        raise running.Interrupted("stopped")

    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(running.mm, "throw_exception_if_processing_interrupted", lambda: None, raising=False)
    with running.bridge.NodeListener("12") as heard, pytest.raises(Interrupt if cancelled else running.Interrupted):
        running.train_now(None, "key", None, heard)
    assert folder.is_dir() == running.run_store().unfinished_record("key").exists() == stays


@pytest.mark.parametrize("error", ["FileError", "SettingError"])
def test_what_hinders_writing_an_adapter_again_is_no_reason_to_train(running, monkeypatch, error):
    """A full disk, a name that another program holds."""
    refuse(running, monkeypatch, errors_of(running)[error])
    with running.bridge.NodeListener("12") as heard, pytest.raises(errors_of(running)[error], match="no space"):
        running.written_again(CONFIG, "key", heard)


def test_a_checkpoint_of_another_version_is_one(running, monkeypatch):
    refuse(running, monkeypatch, errors_of(running)["CheckpointError"])
    with running.bridge.NodeListener("12") as heard:
        assert running.written_again(CONFIG, "key", heard) is None


def errors_of(running) -> dict[str, type[Exception]]:
    """Return the errors that the pack raises: they are imported under its own name."""
    ours = running.RunError.__mro__[1]
    found, more = {}, [ours]
    while more:
        cls = more.pop()
        found[cls.__name__] = cls
        more += cls.__subclasses__()
    return found


def refuse(running, monkeypatch, error: type[Exception]) -> None:
    """Let a finished run have a checkpoint, from which its adapter cannot be written."""

    def write_again(*given):
        raise error("no space left")

    store = SimpleNamespace(last_checkpoint=lambda key: (SimpleNamespace(name="x"), Path("x")))
    monkeypatch.setattr(running, "run_store", lambda: store)
    monkeypatch.setattr(running, "in_this_server", lambda config, name, adapter_dir: config)
    monkeypatch.setattr(running, "write_again", write_again)


def test_a_file_without_a_seed_of_its_own_means_one_run(nodes, tmp_path):
    """`seed = -1` was another run at each reading: Cancel and Run began anew, and ComfyUI's cache never held."""
    model, toml = model_config(tmp_path / "models"), tmp_path / "input" / "x.toml"
    toml.parent.mkdir()
    lines = [f"{name} = '{getattr(model, ours)}'" for name, ours in PATHS.items()]
    toml.write_text("\n".join([*lines, f"train_data_dir = '{tmp_path}'", "seed = -1"]), encoding="utf-8")
    node = nodes("train_toml")
    states = [node.AnimaTrainFromTOML.fingerprint_inputs(path=str(toml)) for _ in range(3)]
    (config, notes), (again, _) = node.read_config(str(toml)), node.read_config(str(toml))
    assert len(set(states)) == 1 and config == again and 0 <= config.seed < 2**31
    assert f"seed=-1: {config.seed}, which follows from the content of x.toml" in notes
    toml.write_text(toml.read_text(encoding="utf-8") + "\n# once more", encoding="utf-8")
    other, _ = node.read_config(str(toml))
    assert other.seed != config.seed


PATHS = {"anima_transformer": "transformer", "vae": "vae", "qwen": "qwen", "t5_tokenizer_dir": "t5_tokenizer_dir"}


def test_an_adapter_is_written_again_where_it_was(running, monkeypatch):
    """One of a sweep in the folder of that."""
    places = []
    run = SimpleNamespace(name="x")
    store = SimpleNamespace(last_checkpoint=lambda key: (run, Path("x")), remember=lambda key, run: run)
    monkeypatch.setattr(running, "run_store", lambda: store)
    monkeypatch.setattr(running, "in_this_server", lambda config, name, adapter_dir: places.append(Path(adapter_dir)))
    monkeypatch.setattr(running, "write_again", lambda config, checkpoint, path, listener: places.append(path))
    monkeypatch.setattr(running, "identity", lambda path: "")
    monkeypatch.setattr(running.dataclasses, "replace", lambda run, **changed: changed["adapter"])
    folder = Path(CONFIG.output.adapter_dir)
    with running.bridge.NodeListener("12") as heard:
        assert running.written_again(CONFIG, "key", heard) == str(folder / "x.safetensors")
    assert places == [folder, folder / "x.safetensors"]
