"""The kinds of flags: how each is read where it is typed, and in a file, where all may come as text."""

import argparse
import re
from collections.abc import Callable
from typing import Any

from ..settings import serial

KINDS = {str: "str", int: "int", float: "float", bool: "switch"}  # of a setting -> of its flag
EXPECTED = {kind: serial.EXPECTED[own] for own, kind in KINDS.items()} | {
    **dict.fromkeys(("path", "prompts"), serial.EXPECTED[str]),
    "list": "a list of name=value texts",
    "steps": "a number of steps, a share below 1, or 10%",
}
SWITCHES = {"true": True, "false": False}


def steps(text: str) -> float:
    """Read a number of steps, or a share of all: 0.1 or 10%."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def unless_empty(kind: str, number: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let an empty text stand for "not set" where a flag is typed."""

    def read(text: str) -> Any:
        try:
            return number(text) if text.strip() else ""
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: must be {EXPECTED[kind]}") from None

    return read


TYPED: dict[str, Callable[[str], Any]] = {
    "str": str,
    "path": str,
    "prompts": str,
    "int": unless_empty("int", int),
    "float": unless_empty("float", float),
    "steps": unless_empty("steps", steps),
}


def as_text(value: Any) -> str:
    if isinstance(value, bool | dict):
        raise TypeError
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def as_list(value: Any) -> list[str]:
    """Split a text where a further name= begins, after blanks or else a comma; numbers with commas between stay whole."""
    items = re.split(r",?\s+(?=\w+=)", value.strip()) if isinstance(value, str) else value
    if len(items) == 1 and isinstance(value, str) and not value.startswith("network_reg"):
        items = re.split(r",(?=\w+=)", value.strip())
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise TypeError
    return [item for item in items if item]


def as_switch(value: Any) -> bool:
    value = SWITCHES.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise TypeError
    return value


def as_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


def as_int(value: Any) -> int:
    number = as_float(value)
    if not number.is_integer():
        raise ValueError
    return value if isinstance(value, int) else int(number)


def as_steps(value: Any) -> float:
    return steps(value.strip()) if isinstance(value, str) else as_float(value)


def from_text(kind: type, value: Any) -> Any:
    """Return a number or a switch that was written as text as what it means; everything else as it is."""
    try:
        return FROM_FILE[KINDS[kind]](value) if kind in KINDS and isinstance(value, str) else value
    except (TypeError, ValueError, OverflowError):
        return value


FROM_FILE: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("str", "path", "prompts"), as_text),
    "list": as_list,
    "switch": as_switch,
    "int": as_int,
    "float": as_float,
    "steps": as_steps,
}
