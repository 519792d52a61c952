"""What a change of the nodes would break in saved graphs: python -m tests.comfyui.schema_diff OLD.json NEW.json.

Both are snapshots as `schema.json`. A graph holds the values of widgets by their order, links to inputs by name, links to
outputs by number; a prompt names the inputs that it gives.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")


def broken(old: dict, new: dict) -> Iterator[str]:
    """Yield what graphs that were saved with the old nodes could no longer do, a line each."""
    for name, before in old.items():
        if name not in new:
            yield f"{name}: the node is gone"
            continue
        yield from (f"{name}: {text}" for text in (*broken_inputs(before, new[name]), *broken_outputs(before, new[name])))


def broken_inputs(before: dict, after: dict) -> Iterator[str]:
    old, new = before["inputs"], after["inputs"]
    for name, kind in old.items():
        if name not in new:
            yield f"the input {name} is gone"
        elif new[name] != kind:
            yield f"the input {name} was {kind} and is {new[name]}"
    for name in after["required"]:
        if name not in before["required"]:
            yield f"the input {name} has become required"
    widgets = [[name for name, kind in inputs.items() if kind in WIDGETS] for inputs in (old, new)]
    kept = [name for name in widgets[0] if name in widgets[1]]
    if (first := widgets[1][: len(kept)]) != kept:
        yield f"the widgets begin with {', '.join(first)}; they were {', '.join(kept)}: add new ones at the end"


def broken_outputs(before: dict, after: dict) -> Iterator[str]:
    old, new = list(before["outputs"].items()), list(after["outputs"].items())
    for number, (name, kind) in enumerate(old):
        if number >= len(new):
            yield f"the output {name} is gone"
        elif new[number][1] != kind:
            yield f"output {number}, {name}, was {kind} and is {new[number][1]}"


def main(*paths: str) -> int:
    """Print what is broken; return the status."""
    old, new = (json.loads(Path(path).read_text(encoding="utf-8")) for path in paths)
    found = list(broken(old, new))
    print("\n".join(found) or "nothing is broken", f"{len(new.keys() - old.keys())} nodes are new", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
