"""The quantised formats that are read, and the words for those that are not."""

import re

from .fp8 import E4M3, E5M2
from .int4 import INT4
from .int8 import INT8
from .mxfp8 import MXFP8
from .nvfp4 import NVFP4

FORMATS = {known.name: known for known in (E4M3, E5M2, INT8, INT4, MXFP8, NVFP4)}

# How a weight is stored that has a scale and nothing that says more, by the dtype of its numbers
BY_DTYPE = {"F8_E4M3": E4M3, "F8_E5M2": E5M2, "I8": INT8}
FLOAT8 = {"F8_E4M3", "F8_E5M2"}

# Names of tensors that other quantisers leave, none of whose files is read
FOREIGN = (
    (re.compile(r"\.(absmax|quant_map|quant_state.*|nested_absmax|SCB|weight_format)$"), "bitsandbytes"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.(wscales|smooth_factor|proj_down|proj_up)$"), "SVDQuant"),
    (re.compile(r"\.weight_(packed|shape|zero_point|global_scale)$"), "compressed-tensors"),
    (re.compile(r"\.weight_scale_inv$"), "Hugging Face's fp8 in blocks"),
    (re.compile(r"\.(scales|biases)$"), "MLX"),
)
