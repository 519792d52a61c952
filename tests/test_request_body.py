"""The bodies of requests to our routes: what they mean, and that whatever strangers send is refused in one line."""

import importlib.util
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .comfyui.pack import ROOT

spec = importlib.util.spec_from_file_location("request_body", ROOT / "nodes" / "request_body.py")
request_body = importlib.util.module_from_spec(spec)
spec.loader.exec_module(request_body)


def target_of(body: bytes, all_of_none: bool = True):
    try:
        return request_body.target_of(body, all_of_none)
    except request_body.BadRequest as error:
        return error


@pytest.mark.parametrize(
    "body, target",
    [
        (b"", (None, None)),
        (b" ", (None, None)),
        (b"{}", (None, None)),
        (b'{"node": "12:5"}', ("12:5", None)),
        (b'{"node": 7}', ("7", None)),
        (b'{"run": "0123456789ab"}', (None, "0123456789ab")),
        ('{"run": "風格-2", "node": "7"}'.encode(), ("7", "風格-2")),
    ],
)
def test_a_training_is_meant_by_its_node_by_its_run_by_both_or_all_are(body, target):
    assert target_of(body) == target


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_only_a_stop_is_for_all(body):
    assert str(target_of(body, all_of_none=False)) == 'say which training: {"run": "<id>"} or {"node": "<id>"}'


HOSTILE = [b"{", b"[]", b'"x"', b"1", b"null", b'{"node": true}', b'{"node": []}', b'{"node": "../x"}', b'{"node": "a b"}']
HOSTILE += [
    b'{"run": null}',  # a page that found no run must not stop every training
    b'{"node": null, "run": "0123456789ab"}',
    b'{"nodes": "11"}',  # a typo, which must not stop every training
    b'{"node": "11", "keep": true}',
    b"[" * 100_000,
    b"[" * 5000,
    b'{"node": ' + b"9" * 5000 + b"}",
    b'{"node": "' + b"a" * 100 + b'"}',
    b"\xff\xfe",
    '{"node": "日本"}'.encode(),
    b'{"run": 7}',
    b'{"run": "../../etc"}',
    b'{"run": "a/b"}',
    b'{"run": ""}',
    b'{"run": "' + b"a" * 81 + b'"}',
    b'{"run": ["0123456789ab"]}',
    b'{"run": "\\ud800"}',
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("all_of_none", [True, False])
def test_hostile_bodies_are_answered_in_one_line(body, all_of_none):
    answer = target_of(body, all_of_none)
    assert isinstance(answer, ValueError) and "\n" not in str(answer) and len(str(answer)) < 170


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text() | st.sampled_from(["node", "run"]), x),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.builds(lambda key, v: json.dumps({key: v}).encode(), st.sampled_from(["node", "run"]), JSON)
)
def test_no_body_breaks_a_request(body):
    answer = target_of(body)
    assert isinstance(answer, ValueError) or all(text is None or is_id(text) for text in answer)


def is_id(text: str) -> bool:
    return 0 < len(text) <= 80 and all(letter.isalnum() or letter in ":.-_" for letter in text)


def test_the_name_of_what_is_deleted_is_said():
    assert request_body.name_in('{"name": "風格 v2"}'.encode()) == "風格 v2"
    for body in (b"", b"{}", b'{"name": 7}', b'{"name": "x", "all": true}', b"[" * 5000, b'{"name": "' + b"x" * 10_000 + b'"}'):
        with pytest.raises(request_body.BadRequest):
            request_body.name_in(body)


@pytest.mark.parametrize("text, number", [(None, 1000), ("10", 10), ("4000", 4000)])
def test_numbers_of_an_address(text, number):
    assert request_body.whole_number(text, 1000, 10, 4000, "points") == number


@pytest.mark.parametrize("text", ["", "9", "4001", "-1", "1e3", "١٢٣", "9" * 5000, "nan", "10 "])
def test_other_numbers_are_refused_with_what_they_may_be(text):
    with pytest.raises(request_body.BadRequest, match="must be a whole number from 10 to 4000"):
        request_body.whole_number(text, 1000, 10, 4000, "points")
