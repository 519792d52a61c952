"""ComfyUI's own linear layer: quantises weights, writes them as its files have them, and reads those back."""

import torch
from comfy.ops import mixed_precision_ops
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy.utils import convert_old_quants


def layer(shape, dtype):
    ops = mixed_precision_ops(compute_dtype=dtype, full_precision_mm=True)
    return ops.Linear(shape[1], shape[0], bias=False)


def written(name, weight, form, options):
    """Return the keys of a file for one layer."""
    linear = layer(weight.shape, weight.dtype)
    linear.quant_format, linear.layout_type = form, QUANT_ALGOS[form]["comfy_tensor_layout"]
    linear.weight = torch.nn.Parameter(QuantizedTensor.from_float(weight, linear.layout_type, **options), requires_grad=False)
    return linear.state_dict(prefix=f"{name}.")


def numbers(name, state, shape, dtype):
    """Return a layer's weight as ComfyUI makes it from a file."""
    linear = layer(shape, dtype)
    linear._load_from_state_dict(dict(state), f"{name}.", {}, True, [], [], [])
    return linear.convert_weight(linear.weight)


def written_and_read(tensors, params):
    """tensors: weights by the name of their layer. Answer `file.KEY`, and `DTYPE.NAME` for each dtype of params."""
    found = {}
    for name, weight in tensors.items():
        state = written(name, weight, params["format"], params["options"])
        found |= {f"file.{key}": tensor for key, tensor in state.items()}
        for dtype in params["dtypes"]:
            found[f"{dtype}.{name}"] = numbers(name, state, weight.shape, getattr(torch, dtype))
    return found


def read_old(tensors, params):
    """tensors: all of a file of an older format. Answer the weights of the layers that params name."""
    state, _ = convert_old_quants(tensors, params["prefix"], params["metadata"])
    dtype = getattr(torch, params["dtype"])
    return {name: numbers(name, state, state[f"{name}.weight"].shape, dtype) for name in params["layers"]}


def run(tensors, params):
    return read_old(tensors, params) if "prefix" in params else written_and_read(tensors, params)
