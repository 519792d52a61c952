"""How scales of blocks lie in files: as cuBLAS wants them, in tiles of 128 rows and 4 columns, padded to whole ones.

https://docs.nvidia.com/cuda/cublas/index.html#d-block-scaling-factors-layout
"""

import torch
from torch import Tensor

ROWS, COLUMNS, LANES = 128, 4, 32  # of a tile; rows of it that lie a line apart


def unblocked(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Map one-byte scales in tiles, of any shape -> their bytes [rows, columns]. Raises ValueError for another count."""
    down, across = -(-rows // ROWS), -(-columns // COLUMNS)
    if scales.element_size() != 1 or scales.numel() != down * ROWS * across * COLUMNS:
        raise ValueError(f"scales of {list(scales.shape)} do not fit {rows} rows of {columns} blocks")
    tiles = scales.contiguous().view(torch.uint8).view(down, across, LANES, ROWS // LANES, COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(down * ROWS, across * COLUMNS)[:rows, :columns].contiguous()
