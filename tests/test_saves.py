"""What a run saves on its way: which saves stay, and that no file of anybody else is ever deleted or overwritten."""

import shutil
from pathlib import Path

import pytest

from anima_core.settings import OutputConfig
from anima_core.training.loop import train
from anima_core.training.saves import AUTO, EPOCH, RESCUE, STEP, WISH, Keep, Save, Saves, outlived

from .tiny import train_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from anima_core.demo.pictures import write_pictures

    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 2)
    return folder


def steps_left(saves, **keep):
    gone = outlived(saves, Keep(**keep))
    return [save.step for save in saves if save not in gone]


def every(n, upto, by=STEP):
    return [Save(f"{step}", step, (by,)) for step in range(n, upto + 1, n)]


def test_last_n_steps_counts_steps_and_last_n_epochs_counts_saves():
    """sd-scripts: after step s those before s - N go, and of epochs all but N."""
    assert steps_left(every(2, 8), steps=4) == [4, 6, 8]
    assert steps_left(every(2, 8), steps=3) == [6, 8]
    assert steps_left(every(2, 8, EPOCH), epochs=3) == [4, 6, 8]
    assert steps_left(every(2, 8), newest=1) == [8]
    assert steps_left(every(2, 8)) == steps_left(every(2, 8, EPOCH)) == [2, 4, 6, 8]


def test_each_rule_counts_its_own_saves_and_a_save_for_two_reasons_lasts_as_long_as_either_lets_it():
    both = [*every(5, 20, EPOCH), *every(2, 18), Save("10", 10, (STEP, EPOCH))]
    left = steps_left(both, steps=2, epochs=3, auto=1)
    assert sorted(left) == [10, 15, 16, 18, 20]
    others = [Save("3", 3, (AUTO,)), Save("7", 7, (RESCUE,)), *every(4, 8)]
    assert steps_left(others, auto=1) == [7, 4, 8]


def test_what_the_user_wished_for_lasts():
    wished = [Save("1", 1, (WISH,)), Save("2", 2, (STEP, WISH))]
    assert steps_left([*wished, *every(2, 8), *every(9, 9, AUTO)], steps=1, newest=1, auto=1) == [1, 2, 8, 9]


def test_a_save_and_a_preview_are_made_once_between_two_steps_when_they_are_wished_for(model, pictures, tmp_path):
    from anima_core.settings import SampleConfig

    samples = SampleConfig(prompts=("a",), width=64, height=64, steps=1, cfg=1.0)
    config = train_config(model, pictures, tmp_path, samples=samples, max_train_steps=8)
    events = []

    def listen(event):
        events.append(event)
        wishes = {1: "save", 3: "preview", 5: "save", 6: "nonsense"}
        return wishes.get(event["step"]) if event["event"] == "step" else None

    result = train(config, listen)
    told = [(event["event"], event["step"]) for event in events if event["event"] in ("saved", "checkpoint", "sample")]
    saved = [("saved", 1), ("checkpoint", 1), ("sample", 3), ("saved", 5), ("checkpoint", 5)]
    assert told == [*saved, ("saved", 8), ("checkpoint", 8)] and result.steps == 8 and result.stop_reason == "finished"
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "test-step00000001.safetensors",
        "test-step00000005.safetensors",
        "test.safetensors",
    ]


def test_a_preview_that_is_wished_for_without_prompts_is_said_to_be_none(model, pictures, tmp_path):
    config, events = train_config(model, pictures, tmp_path, max_train_steps=2), []
    train(config, lambda event: events.append(event) or ("preview" if event["event"] == "step" else None))
    said = [event["text"] for event in events if event["event"] == "note" and "no preview" in event["text"]]
    assert said == ["`samples.prompts`: there are none, so there is no preview to draw"] * 2


def listed(folder, *steps):
    saves = Saves(folder, "adapters")
    for step in steps:
        path = folder / f"x-step{step:08d}.safetensors"
        saves.add(path, step, STEP)
        path.write_bytes(b"ours")
    return saves


def test_only_what_is_listed_is_deleted(tmp_path):
    saves = listed(tmp_path, 2, 4, 6)
    others = [tmp_path / "x-step00000001.safetensors", tmp_path / "x.safetensors", tmp_path / "x-step2.safetensors"]
    for path in others:
        path.write_bytes(b"another's")
    assert saves.prune(Keep(newest=1)) == []
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {*(p.name for p in others), "x-step00000006.safetensors"}
    assert [save.step for save in saves.read()] == [6]


def test_a_save_that_cannot_be_deleted_is_a_warning_and_tried_again(tmp_path, monkeypatch):
    saves = listed(tmp_path, 2, 4)

    def held(path, **options):
        raise PermissionError(13, "another process has it open")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", held)
        (warning,) = saves.prune(Keep(newest=1))
    assert warning.startswith("x-step00000002.safetensors: cannot be deleted")
    assert saves.prune(Keep(newest=1)) == [] and [save.step for save in saves.read()] == [4]


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_none_that_looks_whole(tmp_path, monkeypatch):
    saves = Saves(tmp_path, "checkpoints")
    for number in (1, 2):
        (tmp_path / "checkpoints" / f"step-0000000{number}").mkdir(parents=True)
        saves.add(tmp_path / "checkpoints" / f"step-0000000{number}", number, AUTO)

    def killed(path, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        saves.prune(Keep(auto=1))
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000002"]


def test_a_run_folder_behind_a_link_finds_its_adapters(tmp_path):
    """ComfyUI's output folder is often a link to a larger disk, and models/loras is not."""
    disk, loras = tmp_path / "disk" / "deep" / "output", tmp_path / "comfy" / "models" / "loras"
    disk.mkdir(parents=True)
    loras.mkdir(parents=True)
    (tmp_path / "comfy" / "output").symlink_to(disk, target_is_directory=True)
    run_dir = tmp_path / "comfy" / "output" / "x-run"
    run_dir.mkdir()
    saves = Saves(run_dir, "adapters")
    for step in (1, 2):
        path = loras / f"x-step0000000{step}.safetensors"
        saves.add(path, step, STEP)
        path.write_bytes(b"")
    saves.prune(Keep(newest=1))
    assert [path.name for path in loras.iterdir()] == ["x-step00000002.safetensors"]
    assert saves.set_aside(run_dir / "aside") == [run_dir / "aside" / "x-step00000002.safetensors"]


def test_a_damaged_list_deletes_nothing(tmp_path):
    saves = listed(tmp_path, 2, 4)
    for text in ("", "[]", '{"adapters": '):
        (tmp_path / "saves.json").write_text(text)
        assert saves.prune(Keep(newest=1)) == []
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


# A whole run


def saving(model, pictures, folder, steps=5, every=1, **output):
    own = OutputConfig(str(folder), "x", checkpoint_every_n_minutes=0, save_every_n_steps=every, **output)
    return train_config(model, pictures, folder, output=own, max_train_steps=steps)


def names(folder, pattern="x-step*"):
    return [path.name.removeprefix("x-step").removesuffix(".safetensors").lstrip("0") for path in sorted(folder.glob(pattern))]


def checkpoints(folder):
    return [int(path.name.removeprefix("step-")) for path in sorted((folder / "x-run" / "checkpoints").iterdir())]


def test_adapters_and_states_are_kept_apart(model, pictures, tmp_path):
    output = dict(save_state=True, save_last_n_steps=4, save_last_n_steps_state=2, keep_checkpoints=1)
    train(saving(model, pictures, tmp_path, steps=9, every=2, **output))
    assert names(tmp_path) == ["4", "6", "8"]
    assert checkpoints(tmp_path) == [6, 8, 9]


def test_saves_by_epochs_are_named_by_their_step(model, pictures, tmp_path):
    output = OutputConfig(str(tmp_path), "x", save_every_n_epochs=1, save_last_n_epochs=2)
    dataset = dict(batch_size=1)  # two pictures: two steps an epoch
    train(train_config(model, pictures, tmp_path, output=output, dataset=dataset, max_train_steps=7))
    assert names(tmp_path) == ["4", "6"]


def test_an_earlier_runs_saves_are_set_aside_with_it(model, pictures, tmp_path):
    train(saving(model, pictures, tmp_path, steps=3))
    first = {path.name: path.read_bytes() for path in tmp_path.glob("x-step*")}
    events = []
    train(saving(model, pictures, tmp_path, steps=2, save_last_n=1), events.append)
    assert any("x-run-2, with 2 adapters that it saved on its way" in event.get("text", "") for event in events)
    assert {path.name: path.read_bytes() for path in (tmp_path / "x-run-2").glob("x-step*")} == first
    assert names(tmp_path) == ["1"]


def test_a_file_of_the_same_name_that_no_run_lists_is_kept(model, pictures, tmp_path):
    stranger = tmp_path / "x-step00000001.safetensors"
    stranger.write_bytes(b"another trainer's")
    events = []
    train(saving(model, pictures, tmp_path, steps=3, save_last_n=1), events.append)
    aside = tmp_path / "x-run" / "set_aside" / stranger.name
    assert aside.read_bytes() == b"another trainer's" and names(tmp_path) == ["2"]
    assert any(f"is not of this run; it is kept as {aside}" in event.get("text", "") for event in events)


def test_a_run_that_resumes_an_earlier_step_keeps_its_fresh_saves(model, pictures, tmp_path):
    train(saving(model, pictures, tmp_path, steps=5, save_state=True))
    earlier = tmp_path / "x-run" / "checkpoints" / "step-00000002"
    events = []
    config = saving(model, pictures, tmp_path, steps=5, save_last_n=2, resume=str(earlier))
    train(config, lambda event: events.append(event) or ("stop" if event.get("step") == 3 else None))
    assert names(tmp_path) == ["2", "3"]  # not 3 and 4 of the branch that was given up, nor 4 instead of 3
    assert names(tmp_path / "x-run" / "set_aside") == ["3", "4"]
    assert any("3 later checkpoints and 2 later adapters are set aside" in event.get("text", "") for event in events)


def test_a_run_that_is_cancelled_again_and_again_keeps_one_rescued_adapter(model, pictures, tmp_path):
    from anima_core.errors import Interrupted

    for step in (2, 3):
        resume = "latest" if step == 3 else ""
        with pytest.raises(Interrupted):
            train(
                saving(model, pictures, tmp_path, every=0, resume=resume),
                lambda event, step=step: "cancel" if event.get("step") == step else None,
            )
        assert names(tmp_path / "x-run") == [f"{step}"]
