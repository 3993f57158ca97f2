"""Steps of one size in all directions of a matrix: orthogonalised momentum (Jordan et al. 2024).

Where the mean gradient of a matrix lies mostly along a few directions, along which the loss bends
sharply, a step that follows it is too long for these before it is long enough for the others. Muon
takes the nearest orthogonal matrix instead: U V' of the momentum's decomposition U S V'. Of an
opened, noised mean that is post-processing, and costs no privacy. Jordan et al. come near it by a
Newton-Schulz iteration in bfloat16; here the matrices are small, and the decomposition itself is
taken.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


def orthogonal(values: Array) -> Array:
    """Return a tensor whose singular values are all alike, of root mean square 1.

    So a learning rate is in Adam's units: how far a value moves in a step (Liu et al. 2025, "Muon
    is scalable for LLM training").

    Parameters
    ----------
    values : float64 array (N, ...)
        Finite. All axes but the first are taken for one. A vector is a matrix of one row: its
        direction is kept. Directions in which there is nothing stay so, and where a matrix has
        fewer than its smaller width, the root mean square is less.

    Returns
    -------
    float64 array (N, ...)
    """
    matrix = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(1, -1)
    # PyTorch's, since NumPy's takes threads that nobody gave to this process.
    left, sizes, right = torch.linalg.svd(torch.tensor(matrix), full_matrices=False)
    # The rest is what rounding left of nothing.
    there = sizes > sizes.max() * max(matrix.shape) * torch.finfo(sizes.dtype).eps
    turned = (left * there) @ right * sqrt(max(matrix.shape))
    return np.asarray(turned.numpy()).reshape(values.shape)
