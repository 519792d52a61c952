"""TensorBoard and Weights & Biases: only what was asked for is imported and told, no key is written, and no run ends of it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from anima_core.cli import main
from anima_core.compat.arguments import config_from_file, write_config
from anima_core.demo.pictures import write_pictures
from anima_core.errors import SettingError
from anima_core.loggers import listening as listening_module
from anima_core.loggers.listening import listening
from anima_core.loggers.wanted import Logging

from . import processes
from .test_cli import ROOT, flags
from .test_flags import FOLDER, REQUIRED, config, request
from .test_front_ends import MODELS, flat

KEY = "0123456789abcdef0123456789abcdef01234567"
STUB = """
import json, os

def write(kind, **told):
    with open(os.environ["WANDB_CALLS"], "a", encoding="utf-8") as file:
        file.write(json.dumps([kind, told]) + "\\n")

class Image:
    def __init__(self, path, caption): self.told = [os.path.basename(path), caption]

class Run:
    def define_metric(self, name, **more): write("define_metric", name=name, **more)
    def log(self, told): write("log", **{name: getattr(value, "told", value) for name, value in told.items()})
    def finish(self, exit_code): write("finish", exit_code=exit_code)

def init(**told):
    write("init", key=os.environ.get("WANDB_API_KEY"), meta=os.environ.get("WANDB__DISABLE_META"), **told)
    return Run()
"""
SCRIPT = """
import json, socket, sys
opened = []
def watch(event, given):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"):
        opened.append(event)
        raise ConnectionRefusedError("no connection in this test")
sys.addaudithook(watch)
def refuse(*given):
    watch("socket.connect", given)
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
from anima_core.cli import main
plain, logged = json.loads(sys.argv[1])
answers = [main(plain), "wandb" in sys.modules, list(opened), main(logged), "wandb" in sys.modules, list(opened)]
print(json.dumps(answers))
"""


def step(number: int, **more) -> dict:
    return {
        "event": "step",
        "step": number,
        "loss": 0.5,
        "mean_loss": 0.4,
        "lr": 1e-3,
        "grad_norm": None,
        "seconds": 1.0,
    } | more


HELD_OUT = {"event": "held_out", "step": 2, "loss": 0.3, "t": [0.1, 0.9], "levels": [0.4, 0.2], "base": 0.5, "ema": None}
SAMPLE = {"event": "sample", "step": 2, "path": "/x/samples/step-00000002-1.png", "prompt": "a cat"}
EVENTS = [{"event": "start", "name": "style"}, step(1), HELD_OUT, SAMPLE, step(2)]


def test_nothing_is_imported_or_sent_unless_wandb_was_asked_for_and_no_key_is_written(model, tmp_path):
    write_pictures(tmp_path / "pictures", 2)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(STUB, encoding="utf-8")
    previews = dict(sample_prompts="a cat", sample_size="64,64", sample_steps=1, sample_every_n_steps=2)
    plain = flags(model, tmp_path / "pictures", tmp_path / "out", **previews)
    asked = {"log_with": "wandb", "wandb_api_key": KEY, "wandb_run_name": "first", "logging_dir": tmp_path / "logs"}
    logged = flags(model, tmp_path / "pictures", tmp_path / "out", **previews | asked | {"output_name": "y", "seed": 7})
    environment = {"WANDB_CALLS": str(tmp_path / "calls.jsonl"), "WANDB_MODE": "online"}
    environment["PYTHONPATH"] = f"{tmp_path / 'packages'}{';' if sys.platform == 'win32' else ':'}{ROOT}"
    done = processes.run([sys.executable, "-c", SCRIPT, json.dumps([plain, [*logged, "--log_config"]])], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False, [], 0, True, []]

    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text(encoding="utf-8").splitlines()]
    (kind, begun), *_, (last, ended) = calls
    assert (kind, last, ended) == ("init", "finish", {"exit_code": 0})
    assert (begun["project"], begun["name"], begun["dir"], begun["key"]) == (
        "network_train",
        "first",
        str(tmp_path / "logs"),
        KEY,
    )
    assert begun["meta"] == "true"  # the command line, in which the key stands, the machine and its user
    assert begun["config"]["seed"] == 7 and begun["config"]["model"]["vae"] == "vae_tiny.safetensors"
    assert str(tmp_path) not in json.dumps(begun["config"])
    told = [values for kind, values in calls if kind == "log"]
    lines = (tmp_path / "out" / "y-run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [event["loss"] for event in map(json.loads, lines) if event["event"] == "step"]
    assert [values["loss"] for values in told if "loss" in values] == losses
    assert {"step": 2, "samples/0": ["step-00000002-0.png", "a cat"]} in told

    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "calls.jsonl"]
    assert len(written) > 20 and [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert KEY not in done.stdout + done.stderr


@pytest.fixture
def said() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def tell(said):
    """-> `say` of loggers, which keeps what was said."""
    return lambda event: said.append((event["event"], event["text"]))


class Fake:
    """A logger that keeps what it is told, or fails."""

    name = "Fake"

    def __init__(self, fails_at: int = -1) -> None:
        self.told: list = []
        self.fails_at = fails_at

    def start(self, run, settings):
        self.told.append(("start", run, settings))

    def numbers(self, step, values):
        if step == self.fails_at:
            raise OSError("network\ndown")
        self.told.append((step, values))

    def picture(self, step, name, path, caption):
        self.told.append((step, name, path, caption))

    def close(self, failed):
        self.told.append(("close", failed))


@pytest.fixture
def fake(monkeypatch) -> Fake:
    logger = Fake()
    monkeypatch.setattr(listening_module, "loggers", lambda wanted, say: [logger])
    return logger


def test_a_logger_is_told_numbers_held_out_losses_and_samples(fake, said, tell):
    with listening(Logging(), config(), tell) as log:
        log({"event": "note", "text": "before the run has begun"})
        for event in EVENTS:
            log(event)
    numbers = {"loss": 0.5, "mean_loss": 0.4, "lr": 1e-3, "seconds": 1.0}
    held_out = {"held_out/loss": 0.3, "held_out/base": 0.5, "held_out_levels/t=0.10": 0.4, "held_out_levels/t=0.90": 0.2}
    picture = (2, "samples/1", SAMPLE["path"], "a cat")
    assert fake.told == [("start", "style", {}), (1, numbers), (2, held_out), picture, (2, numbers), ("close", False)]
    assert said == []


def test_a_logger_that_fails_is_one_warning_and_ends_no_run(fake, said, tell):
    fake.fails_at = 2
    with listening(Logging(), config(), tell) as log:
        for event in [*EVENTS, step(3)]:
            log(event)
    assert [told[0] for told in fake.told] == ["start", 1]
    assert said == [("warning", "Fake: network down; it gets no more of this run, log.jsonl has all")]


def test_a_run_that_fails_is_told_and_one_that_never_began_is_not(fake, tell):
    for events, closed in ((EVENTS[:1], [("close", True)]), ([], [])):
        fake.told.clear()
        with pytest.raises(KeyboardInterrupt), listening(Logging(), config(), tell) as log:
            for event in events:
                log(event)
            raise KeyboardInterrupt
        assert fake.told[len(events) :] == closed


def test_what_is_not_installed_is_refused_before_anything_loads_or_noted(monkeypatch, capsys, said, tell):
    monkeypatch.setattr(listening_module, "find_spec", lambda name: None)
    for asked, package in (("wandb", "wandb"), ("tensorboard", "tensorboard"), ("all", "tensorboard")):
        wanted = request(*REQUIRED, *FOLDER, "--log_with", asked).logging
        with pytest.raises(SettingError, match=f"log_with={package} needs the package {package}: pip install {package}"):
            with listening(wanted, config(), tell):
                raise AssertionError
    assert main(["train", *REQUIRED, *FOLDER, "--log_with", "wandb"]) == 2  # before any of these files is looked for
    assert capsys.readouterr().err.endswith("anima: log_with=wandb needs the package wandb: pip install wandb\n")
    with listening(request(*REQUIRED, *FOLDER, "--logging_dir", "x").logging, config(), tell) as log:
        log(EVENTS[0])
    assert said == [("note", "logging_dir: no TensorBoard files without the package tensorboard: pip install tensorboard")]


def test_what_wandb_refuses_is_refused_without_the_key_and_with_the_ways_out(monkeypatch, tmp_path, tell):
    def refuse(**given):
        raise RuntimeError(f"invalid key {KEY}\nsee the page")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse, __spec__=SimpleNamespace()))
    monkeypatch.setattr("os.environ", {})
    wanted = Logging(wandb=True, folder=str(tmp_path / "logs"), api_key=KEY)
    assert KEY not in repr(wanted)
    ways_out = "run wandb login, give --wandb_api_key, or set WANDB_MODE=offline"
    with pytest.raises(SettingError) as refused, listening(wanted, config(), tell) as log:
        log(EVENTS[0])
    assert str(refused.value) == f"log_with=wandb: invalid key … see the page; {ways_out}"


def test_tensorboard_gets_numbers_pictures_and_settings(monkeypatch, tmp_path, tell):
    from PIL import Image

    calls: list = []

    class Writer:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, *told):
            calls.append(told)

        def add_image(self, name, array, step, dataformats):
            calls.append((name, array.shape, step, dataformats))

        def add_text(self, name, text):
            calls.append((name, json.loads(text.strip("`").removeprefix("json"))["output"]["name"]))

        def close(self):
            calls.append("close")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(listening_module, "find_spec", lambda name: True)
    path = tmp_path / "step-00000002-1.png"
    Image.new("RGBA", (8, 4)).save(path)
    wanted = request(*REQUIRED, *FOLDER, "--log_with", "tensorboard", "--logging_dir", "x", "--log_config").logging
    with listening(wanted, config(), tell) as log:
        for event in (*EVENTS[:3], SAMPLE | {"path": str(path)}):
            log(event)
    assert calls[:3] == ["x", ("settings", config().output.name), ("loss", 0.5, 1)] and calls[-1] == "close"
    assert ("held_out/loss", 0.3, 2) in calls and ("samples/1", (4, 8, 3), 2, "HWC") in calls


@pytest.mark.parametrize(
    "flags, folder, required, wandb",
    [
        ([], "", False, False),
        (["--logging_dir", "x"], "x", False, False),
        (["--log_with", "tensorboard"], "logs", True, False),
        (["--log_with", "all", "--logging_dir", "x"], "x", True, True),
        (["--log_with", "wandb", "--logging_dir", "x"], "", False, True),
    ],
)
def test_what_is_asked_for_by_flags_and_by_files(tmp_path, flags, folder, required, wandb):
    lines = [f"{name.strip('-')} = '{value}'" for name, value in zip(flags[::2], flags[1::2])]
    typed, read = request(*REQUIRED, *FOLDER, *flags), flat(tmp_path, "\n".join(lines))
    write_config(typed.config, tmp_path / "frozen.toml")
    again = request("--config", str(tmp_path / "frozen.toml"), *flags)  # a run that goes on by its own file
    assert again.config == typed.config
    for answer in (typed, read, again):
        found = answer.logging
        assert (found.tensorboard, found.tensorboard_required, found.wandb) == (folder, required, wandb)
    _, notes = config_from_file(tmp_path / "flat.toml")
    assert [note for note in notes if "command line only" in note] == [
        *["TensorBoard's files are written by the command line only"] * bool(folder),
        *["wandb is told by the command line only"] * wandb,
    ]


def test_flags_of_loggers_that_were_not_asked_for_are_noted_without_their_values(tmp_path):
    given = ["--wandb_api_key", KEY, "--wandb_run_name", "n", "--log_prefix", "p", "--log_config"]
    answer = request(*REQUIRED, *FOLDER, *given)
    assert [note for note in answer.notes if "log_with" in note] == [
        "log_prefix has no effect without log_with=tensorboard",
        "wandb_run_name has no effect without log_with=wandb",
        "wandb_api_key has no effect without log_with=wandb",
        "log_config has no effect without log_with=tensorboard or wandb",
    ]
    assert KEY not in "".join(answer.notes) + repr(answer)


def test_the_names_of_sd_scripts_reach_the_loggers(tmp_path):
    (tmp_path / "more.toml").write_text("[wandb]\nentity = 'team'\ntags = ['a']\n", encoding="utf-8")
    given = ["--log_with", "all", "--log_prefix", "p_", "--log_tracker_name", "anima", "--logging_dir", "x"]
    found = request(*REQUIRED, *FOLDER, *given, "--log_tracker_config", str(tmp_path / "more.toml")).logging
    assert (found.project, found.run_name, found.init) == ("anima", "", {"entity": "team", "tags": ["a"]})
    folder = Path(found.tensorboard)
    assert folder.parent == Path("x") and folder.name.startswith("p_2") and found.folder == "x"
    (tmp_path / "none.toml").write_text(MODELS, encoding="utf-8")
    with pytest.raises(SettingError, match=r"log_tracker_config=.*none.toml: must have a table \[wandb\]"):
        request(*REQUIRED, *FOLDER, *given, "--log_tracker_config", str(tmp_path / "none.toml"))
