"""Any optimizer's state as tensors and plain JSON, and back to the last bit, whatever lists and tuples it is made of."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

QUANTISED = "__bnb_optimizer_quant_state__"  # bitsandbytes keeps a parameter's moments within this, and reads them without it
INSIDE = "inside"  # begins the key of a tensor that lies within a list or a group, where only its mark knows the place
PLAIN = (str, int, float, bool, type(None))


def flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split any optimizer's state dict into tensors `optimizer.<parameter>.<name>` and the rest as plain JSON.

    Raises TypeError for what no file can hold.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    places: set[int] = set()  # in memory
    shared = {}  # what a few, as MADGRAD, keep beside their parameters
    for index, entries in state["state"].items():
        if not isinstance(index, int):
            shared[index] = pack(entries, f"{INSIDE}.{index}", tensors)
            continue
        scalars[str(index)] = {}
        for name, value in (entries | entries.get(QUANTISED, {})).items():
            if isinstance(value, Tensor):
                taken = value.data_ptr() in places  # bitsandbytes has one table of numbers for all, which no file can have
                tensors[f"optimizer.{index}.{name}"] = value.clone() if taken else value
                places.add(value.data_ptr())
            elif name != QUANTISED:
                scalars[str(index)][name] = pack(value, f"{INSIDE}.{index}.{name}", tensors)
    groups = [
        {name: packed_setting(value, f"{INSIDE}.group{i}.{name}", tensors) for name, value in group.items()}
        for i, group in enumerate(state["param_groups"])
    ]
    strides = {key.partition(".")[2]: tensor.stride() for key, tensor in tensors.items() if transposed(tensor)}
    rare = {name: value for name, value in (("shared", shared), ("strides", strides)) if value}
    return tensors, {"state": scalars, "param_groups": groups} | rare


def unflatten_optimizer(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> dict[str, Any]:
    """Put back together what `flatten_optimizer` split. tensors: without "optimizer."."""
    strides = scalars.get("strides", {})
    tensors = {key: laid_out(tensor, strides[key]) if key in strides else tensor for key, tensor in tensors.items()}
    state: dict[int | str, Any] = {
        int(index): {name: unpack(value, tensors) for name, value in values.items()}
        for index, values in scalars["state"].items()
    }
    state |= {name: unpack(value, tensors) for name, value in scalars.get("shared", {}).items()}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        if index != INSIDE:
            state.setdefault(int(index), {})[name] = tensor
    groups = [{name: unpack(value, tensors) for name, value in group.items()} for group in scalars["param_groups"]]
    for group in groups:
        group |= {"betas": tuple(group["betas"])} if "betas" in group else {}  # a list in earlier checkpoints
    return {"state": state, "param_groups": groups}


def pack(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON, its tensors put among `tensors`; what JSON has no word for is marked as {kind: content}."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        tensors[f"optimizer.{key}"] = value.detach().to("cpu", copy=True)  # views of one storage cannot be written
        return {"tensor": key}
    if type(value) is dict:
        items = [[pack(k, "", {}), pack(v, f"{key}.{i}", tensors)] for i, (k, v) in enumerate(value.items())]
        return {"dict": items}
    if type(value) in (list, tuple):
        return {type(value).__name__: [pack(item, f"{key}.{i}", tensors) for i, item in enumerate(value)]}
    raise TypeError(f"its state holds a {type(value).__name__} ({key.rpartition('.')[2]}), which no checkpoint can")


def packed_setting(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Return a group's value as `pack` does, and None for what it cannot: settings, as a dtype is, come from the run anew."""
    if type(value) is list and all(isinstance(item, PLAIN) for item in value):
        return value  # the numbers of the parameters
    try:
        return pack(value, key, tensors)
    except TypeError:
        return None


UNPACK: dict[str, Callable[[list[Any]], Any]] = {"list": list, "tuple": tuple, "dict": dict}


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {name: unpack(item, tensors) for name, item in content}
    return UNPACK[kind]([unpack(item, tensors) for item in content])


def transposed(tensor: Tensor) -> bool:
    """Tell whether a tensor's numbers lie in memory in another order than a file has them, as those of a QR do."""
    return not tensor.is_contiguous() and 0 not in tensor.stride()


def laid_out(tensor: Tensor, strides: list[int]) -> Tensor:
    """Return a tensor whose numbers lie as they did: in another order a matrix product rounds otherwise."""
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def load_exactly(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments as they were saved, and keep the settings of the run.

    torch turns every moment into its parameter's precision, also one kept in bf16, and brings the old learning rate back.
    Raises ValueError for the state of other groups of parameters.
    """
    settings = [{name: group[name] for name in settings_in(optimizer, group)} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, ours in zip(optimizer.param_groups, settings):
        group.update(ours)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, saved in state["state"].items():
        own = optimizer.state[parameters[index] if isinstance(index, int) else index]
        if isinstance(own, dict):
            own |= {name: in_precision_of(saved[name], own[name]) for name in own.keys() & saved.keys()}


def settings_in(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> list[str]:
    """Return the keys of a parameter group that its class takes as arguments; the others are state, as ScheduleFree's."""
    known = {*inspect.signature(type(optimizer)).parameters, "initial_lr"}
    return [key for key in group if key in known and key != "params"]


def in_precision_of(saved: Any, loaded: Any) -> Any:
    """Return what was loaded, with each tensor in it whose precision is another taken from what was saved."""
    if isinstance(saved, Tensor) and isinstance(loaded, Tensor):
        return loaded if saved.dtype == loaded.dtype else saved.to(loaded.device, copy=True)
    if type(saved) is dict:
        return {name: in_precision_of(item, loaded[name]) for name, item in saved.items()}
    if type(saved) in (list, tuple):
        return type(saved)(in_precision_of(*pair) for pair in zip(saved, loaded))
    return loaded
