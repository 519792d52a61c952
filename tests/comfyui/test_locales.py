"""Translations and help pages against the schemas that a real ComfyUI reports: nothing missing, nothing stale."""

import ast
import json
import re
import urllib.request
from collections.abc import Iterator
from functools import cache

import pytest

from tests.comfyui.make_help import input_list, with_list
from tests.comfyui.schema import inputs_of, our_nodes
from tests.comfyui.server import ROOT
from tests.processes import HANGS

LOCALES = ROOT / "locales"
DOCS = ROOT / "web" / "docs"
LANGUAGES = ("en", "zh")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
CODE = re.compile(r"`([^`]+)`")
BOLD = re.compile(r"\*\*([^*]+)\*\*")
COLON = {"en": ": ", "zh": "："}
NARROW = 28  # characters of a code word that fit ComfyUI's panel of 300 px, which breaks none
MESSAGE_SYNTAX = re.compile(r"[{}@|]")  # vue-i18n would interpolate, link or pluralise
SECTIONS = {  # of a help page, in their order
    "en": ["Inputs", "Advice", "Outputs", "Example", "Common errors", "Which folders a server reads"],
    "zh": ["输入", "建议", "输出", "示例", "常见错误", "服务器能读取哪些文件夹"],
}
NOT_ON_EVERY_PAGE = {"Advice", "Which folders a server reads"}
SOURCES = [*(ROOT / "nodes").glob("*.py"), *(ROOT / "anima_core").rglob("*.py")]


@pytest.fixture(scope="module")
def nodes(server):
    return our_nodes(server.get("/object_info"))


def locale(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def page(node: str, language: str) -> str:
    return (DOCS / node / f"{language}.md").read_text(encoding="utf-8")


def headings(node: str, language: str) -> list[str]:
    return re.findall(r"^## (.*)$", page(node, language), flags=re.MULTILINE)


def section(node: str, language: str, heading: str) -> list[str]:
    """Lines below one `##` heading of a page, named in English; none where the page has no such section."""
    heading = SECTIONS[language][SECTIONS["en"].index(heading)]
    _, *parts = re.split(r"^## (.*)$", page(node, language), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2])).get(heading, "").strip().splitlines()


def hand_written(node: str, language: str) -> list[str]:
    listed = section(node, language, "Inputs")
    return [line for line in page(node, language).splitlines() if line not in listed]


def listed_names(node: str, language: str) -> list[str]:
    """The inputs that the list on a page names, in its order."""
    return [BOLD.findall(line)[0] for line in section(node, language, "Inputs")]


def advised(node: str, language: str) -> list[list[str]]:
    """The inputs that each line of advice is about."""
    return [BOLD.findall(line.split(COLON[language])[0]) for line in section(node, language, "Advice")]


def output_names(node: str, language: str) -> list[str]:
    return [BOLD.findall(line)[0] for line in section(node, language, "Outputs")]


@cache
def messages() -> str:
    """Every text in the code, one a line: its docstrings are none, and what an f-string fills in is an ellipsis."""
    return "\n".join(text for path in SOURCES for text in literals(ast.parse(path.read_text(encoding="utf-8"))))


def literals(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield from literals(node)


def texts(tree: dict) -> list[str]:
    return [text for value in tree.values() for text in (texts(value) if isinstance(value, dict) else [value])]


def test_chinese_covers_every_node_input_and_output(nodes):
    translated = locale("zh", "nodeDefs")
    defined = {name for path in SOURCES for name in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))}
    assert set(translated) == set(nodes) == defined
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
def test_help_has_its_sections_in_order(nodes, language):
    assert {folder.name for folder in DOCS.iterdir()} == set(nodes)
    for name in nodes:
        found = headings(name, language)
        assert found == [heading for heading in SECTIONS[language] if heading in found], name
        for english, heading in zip(SECTIONS["en"], SECTIONS[language], strict=True):
            without = NOT_ON_EVERY_PAGE if inputs_of(nodes[name]) else NOT_ON_EVERY_PAGE | {"Inputs"}
            left_out = heading not in found and english in without
            assert left_out or section(name, language, english), (name, heading)


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_names_every_input_and_output(nodes, language):
    for name, node in nodes.items():
        inputs = [i for i in inputs_of(node).values() if not i.slot]
        names = list(dict.fromkeys(i.name for i in inputs))
        assert listed_names(name, language) == names, name
        assert output_names(name, language) == node["output_name"], name
        title = node["display_name"] if language == "en" else locale("zh", "nodeDefs")[name]["display_name"]
        assert page(name, language).startswith(f"# {title}\n"), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_lists_inputs_as_make_help_writes_them(nodes, language):
    for name, node in nodes.items():
        rows, text = input_list(name, node, language), page(name, language)
        assert section(name, language, "Inputs") == rows, f"{name}: run python -m tests.comfyui.make_help"
        assert with_list(text, rows, language) == text, name


def test_help_advises_on_inputs_that_the_node_has(nodes):
    for name, node in nodes.items():
        names = {i.name for i in inputs_of(node).values() if not i.slot}
        english, chinese = (advised(name, language) for language in LANGUAGES)
        assert english == chinese and all(about and set(about) <= names for about in english), name
        assert len(english) == len({tuple(about) for about in english}), name


def test_chinese_help_calls_inputs_as_the_node_does(nodes):
    for name, node in nodes.items():
        entry = locale("zh", "nodeDefs")[name]
        called = {f"**{i.name}** {entry['inputs'][key]['name']}" for key, i in inputs_of(node).items() if not i.slot}
        rows = [line.removeprefix("- ").split("：")[0] for line in section(name, "zh", "Inputs")]
        assert set(rows) == called, name
        for line in section(name, "zh", "Advice"):
            assert set(line.removeprefix("- ").split("：")[0].split("、")) <= called, (name, line)
        for index, line in enumerate(section(name, "zh", "Outputs")):
            assert line.startswith(f"- **{node['output_name'][index]}** {entry['outputs'][str(index)]['name']}：")


def test_help_is_the_same_in_both_languages(nodes):
    for name in nodes:
        english, chinese = (page(name, language).splitlines() for language in LANGUAGES)
        assert 12 <= len(hand_written(name, "en")) <= 40, name
        assert len(english) == len(chinese), name
        for ours, theirs in zip(english, chinese):
            marks = [re.match(r"#+ |- \*\*|- |", line)[0] for line in (ours, theirs)]
            assert marks[0] == marks[1] and bool(ours) == bool(theirs), (name, ours, theirs)
            assert set(NUMBER.findall(ours)) == set(NUMBER.findall(theirs)), (name, ours, theirs)


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_fits_a_narrow_panel(language):
    for folder in DOCS.iterdir():
        text = page(folder.name, language)
        assert not re.search(r"^\s*\|", text, flags=re.MULTILINE), folder.name  # a table is as wide as its longest word
        assert not [word for word in CODE.findall(text) if len(word) > NARROW], folder.name


def test_help_quotes_errors_that_exist(nodes):
    """A quote stops at a setting that a message names: the code has its mark there, the graph its own word."""
    quoted = 0
    for name in nodes:
        english, chinese = (section(name, language, "Common errors") for language in LANGUAGES)
        for ours, theirs in zip(english, chinese, strict=True):
            if ours.startswith("- **"):
                message = BOLD.findall(ours)[0]
                assert message in messages() and BOLD.findall(theirs)[0] == message, (name, message)
                quoted += 1
    assert quoted > 40


def test_server_hands_out_the_help(server, nodes):
    for name, node in nodes.items():
        folder = node["python_module"].removeprefix("custom_nodes.")
        for language in LANGUAGES:
            with urllib.request.urlopen(server.url(f"/extensions/{folder}/docs/{name}/{language}.md"), timeout=HANGS) as answer:
                assert answer.read().decode("utf-8") == page(name, language)
