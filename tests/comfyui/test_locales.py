"""Translations and help pages against the schemas that a real ComfyUI reports: nothing missing, nothing stale."""

import json
import re
import urllib.request

import pytest

from tests.comfyui.schema import inputs_of, our_nodes
from tests.comfyui.server import ROOT, ComfyUI
from tests.processes import HANGS

LOCALES = ROOT / "locales"
DOCS = ROOT / "web" / "docs"
LANGUAGES = ("en", "zh")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
CODE = re.compile(r"`([^`]+)`")
MESSAGE_SYNTAX = re.compile(r"[{}@|]")  # vue-i18n would interpolate, link or pluralise


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    with ComfyUI(*comfyui, tmp_path_factory.mktemp("locales")) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(server):
    return our_nodes(server.get("/object_info"))


def locale(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def page(node: str, language: str) -> str:
    return (DOCS / node / f"{language}.md").read_text(encoding="utf-8")


def section(text: str, number: int) -> list[str]:
    """Lines of the number-th `##` section: inputs, outputs, example, errors."""
    return re.split(r"^## .*$", text, flags=re.MULTILINE)[number].strip().splitlines()


def table_names(text: str) -> set[str]:
    """The code words in the first column of the inputs' table."""
    rows = [line for line in section(text, 1) if line.startswith("| `")]
    return {name for row in rows for name in CODE.findall(row.split(" | ")[0])}


def output_names(text: str) -> list[str]:
    return [CODE.findall(line)[0] for line in section(text, 2)]


def texts(tree: dict) -> list[str]:
    return [text for value in tree.values() for text in (texts(value) if isinstance(value, dict) else [value])]


def test_chinese_covers_every_node_input_and_output(nodes):
    translated = locale("zh", "nodeDefs")
    assert len(nodes) == 19
    assert set(translated) == set(nodes)
    for name, node in nodes.items():
        entry = translated[name]
        assert set(entry) == {"display_name", "description", "inputs", "outputs"}, name
        assert set(entry["inputs"]) == set(inputs_of(node)), name
        assert all(set(words) == {"name", "tooltip"} for words in entry["inputs"].values()), name
        assert set(entry["outputs"]) == {str(i) for i in range(len(node["output"]))}, name
        for index, tooltip in enumerate(node["output_tooltips"]):
            wanted = {"name", "tooltip"} if tooltip else {"name"}
            assert set(entry["outputs"][str(index)]) == wanted, (name, index)


def test_chinese_says_the_same_numbers(nodes):
    """A default or an advice that changes in Python must change here too."""
    compared = 0
    for name, node in nodes.items():
        entry = locale("zh", "nodeDefs")[name]
        pairs = [("description", node["description"], entry["description"])]
        pairs += [(k, i.tooltip, entry["inputs"][k]["tooltip"]) for k, i in inputs_of(node).items() if i.tooltip]
        for key, english, chinese in pairs:
            assert CHINESE.search(chinese), (name, key)
            assert set(NUMBER.findall(english)) == set(NUMBER.findall(chinese)), (name, key)
            compared += 1
    assert compared > 120


def test_english_adds_only_what_python_cannot_say(nodes):
    """An `en` entry overrides Python's own text, so none may stand where Python has one."""
    for name, entry in locale("en", "nodeDefs").items():
        inputs = inputs_of(nodes[name])
        assert set(entry) == {"inputs"}, name
        for key, words in entry["inputs"].items():
            assert set(words) == {"tooltip"} and words["tooltip"], (name, key)
            assert inputs[key].slot and not inputs[key].tooltip, (name, key)


@pytest.mark.parametrize("language", LANGUAGES)
def test_categories_and_message_syntax(nodes, language):
    main = locale(language, "main")
    parts = {part for node in nodes.values() for part in node["category"].split("/")}
    assert set(main) == {"nodeCategories"} and set(main["nodeCategories"]) == parts
    for text in texts(main) + texts(locale(language, "nodeDefs")):
        assert text.strip() == text != "" and not MESSAGE_SYNTAX.search(text), text


def test_server_hands_out_the_translations(server):
    told = server.get("/i18n")
    for language in LANGUAGES:
        assert told[language]["nodeDefs"] == locale(language, "nodeDefs")
        assert told[language]["nodeCategories"] == locale(language, "main")["nodeCategories"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_names_every_input_and_output(nodes, language):
    assert {folder.name for folder in DOCS.iterdir()} == set(nodes)
    for name, node in nodes.items():
        text, inputs = page(name, language), inputs_of(node)
        names = {i.name for i in inputs.values()}
        slots = {i.name for i in inputs.values() if i.slot}
        assert names - slots <= table_names(text) <= names, name
        assert output_names(text) == node["output_name"], name
        title = node["display_name"] if language == "en" else locale("zh", "nodeDefs")[name]["display_name"]
        assert text.startswith(f"# {title}\n"), name


def test_chinese_help_calls_inputs_as_the_node_does(nodes):
    for name, node in nodes.items():
        entry = locale("zh", "nodeDefs")[name]
        table = "\n".join(section(page(name, "zh"), 1))
        for key, found in inputs_of(node).items():
            assert found.slot or f"`{found.name}` {entry['inputs'][key]['name']}" in table, (name, key)
        for index, line in enumerate(section(page(name, "zh"), 2)):
            assert line.startswith(f"- `{node['output_name'][index]}` {entry['outputs'][str(index)]['name']}：")


def test_help_is_the_same_in_both_languages(nodes):
    for name in nodes:
        english, chinese = (page(name, language).splitlines() for language in LANGUAGES)
        assert 15 <= len(english) <= 40, name
        assert len(english) == len(chinese), name
        for ours, theirs in zip(english, chinese):
            marks = [re.match(r"#+ |\| `|\|-|- |", line)[0] for line in (ours, theirs)]
            assert marks[0] == marks[1] and bool(ours) == bool(theirs), (name, ours, theirs)
            assert set(NUMBER.findall(ours)) == set(NUMBER.findall(theirs)), (name, ours, theirs)


def test_help_quotes_errors_that_exist(nodes):
    sources = [*(ROOT / "nodes").glob("*.py"), *(ROOT / "anima_core").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    quoted = 0
    for name in nodes:
        english, chinese = (section(page(name, language), 4) for language in LANGUAGES)
        for ours, theirs in zip(english, chinese, strict=True):
            if ours.startswith("- `"):
                message = CODE.findall(ours)[0]
                assert message in code and CODE.findall(theirs)[0] == message, (name, message)
                quoted += 1
    assert quoted > 40


def test_server_hands_out_the_help(server, nodes):
    for name, node in nodes.items():
        folder = node["python_module"].removeprefix("custom_nodes.")
        for language in LANGUAGES:
            with urllib.request.urlopen(server.url(f"/extensions/{folder}/docs/{name}/{language}.md"), timeout=HANGS) as answer:
                assert answer.read().decode("utf-8") == page(name, language)
