"""How checkpoints name what a run holds in flat tensors: layer by layer, as if there were none."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..adapters.flat import Flat

ROWS = ("s", "p0")  # of Prodigy, which keeps them as rows of numbers, whatever a parameter's shape


def split_optimizer(state: dict[str, Any], flats: Sequence[Flat]) -> dict[str, Any]:
    """Rewrite the state dict of an optimizer of flat tensors as that of one of their parameters, on the CPU.

    flats: of its groups; none for an optimizer of parameters, whose state is what it should be.
    """
    if not flats:
        return state
    entries: dict[int, dict[str, Any]] = {}
    groups = []
    for group, numbers, flat in zip(state["param_groups"], numbered(flats), flats, strict=True):
        (index,) = group["params"]
        for name, value in state["state"].get(index, {}).items():
            for number, piece in zip(numbers, pieces(value, flat), strict=True):
                entries.setdefault(number, {})[name] = piece.flatten() if name in ROWS else piece
        groups.append(group | {"params": numbers})
    return {"state": entries, "param_groups": groups}


def join_optimizer(state: dict[str, Any], flats: Sequence[Flat]) -> dict[str, Any]:
    """Undo `split_optimizer`. Raises ValueError for the state of other groups of parameters."""
    if not flats:
        return state
    if [group["params"] for group in state["param_groups"]] != numbered(flats):
        raise ValueError("the checkpoint's groups of parameters are others")
    entries: dict[int, dict[str, Any]] = {}
    for index, (numbers, flat) in enumerate(zip(numbered(flats), flats)):
        of_layers = [state["state"].get(number, {}) for number in numbers]
        if of_layers[0]:
            entries[index] = {name: whole([own[name] for own in of_layers], flat) for name in of_layers[0]}
    groups = [group | {"params": [index]} for index, group in enumerate(state["param_groups"])]
    return {"state": entries, "param_groups": groups}


def split_averages(state: dict[str, Tensor], flats: Sequence[Flat]) -> dict[str, Tensor]:
    """Rewrite the state dict of the average of flat tensors as that of their parameters' average, on the CPU."""
    if not flats:
        return state
    averages = [piece for i, flat in enumerate(flats) for piece in pieces(state[f"{i:05d}"], flat)]
    return {"updates": state["updates"]} | {f"{i:05d}": average for i, average in enumerate(averages)}


def join_averages(state: dict[str, Tensor], flats: Sequence[Flat]) -> dict[str, Tensor]:
    """Undo `split_averages`."""
    joined = {
        f"{i:05d}": flat.join([state[f"{number:05d}"] for number in numbers])
        for i, (numbers, flat) in enumerate(zip(numbered(flats), flats))
    }
    return state | joined


def numbered(flats: Sequence[Flat]) -> list[list[int]]:
    """Return the numbers of each flat tensor's parameters, counted through all of them."""
    numbers = iter(range(sum(len(flat.parameters) for flat in flats)))
    return [[next(numbers) for _ in flat.parameters] for flat in flats]


def pieces(value: Any, flat: Flat) -> list[Any]:
    """Return what each parameter has of a value: its part of a moment; a counter as it is, each its own."""
    if not isinstance(value, Tensor):
        return [value for _ in flat.parameters]
    host = value.detach().cpu()  # the one copy from the device
    return flat.split(host) if host.shape == flat.whole.shape else [host.clone() for _ in flat.parameters]


def whole(values: Sequence[Any], flat: Flat) -> Any:
    """Undo `pieces`. A number among moments stands for a tensor of it, as Prodigy has it for parameters that began at zero."""
    if not any(isinstance(value, Tensor) and value.ndim for value in values):
        return values[0]
    shaped = zip(values, (p.shape for p in flat.parameters))
    return flat.join([value.view(shape) if value.ndim else value.expand(shape) for value, shape in shaped])
