"""Sites of unequal ranks in one blind sum: zero-padded blocks of a common basis.

Column k of B and row k of A are block k of an adapter. A site of rank r trains the first r blocks
and sends zeros for the others, so that all updates have one length and any sum of them can be
opened. A sum divided by all sites would shrink a block that few of them train, so each block is
divided by those that do (Cho et al. 2024, HetLoRA, prunes and weighs in other ways). A site's rank
follows from the size that it announced and signed, by a table of the run, and so tells no more
than that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedllm.models.manifest import AdapterManifest, Segment


def trained_places(manifest: AdapterManifest, rank: int) -> NDArray[np.bool_]:
    """Return which values (P,) a site of some rank trains: its blocks, and all of a head."""
    return _blocks(manifest) < rank


def block_weights(manifest: AdapterManifest, ranks: Sequence[int]) -> NDArray[np.float64]:
    """Return by what the mean over all sites is multiplied, (P,), to be one over those that train.

    Zero for blocks that nobody trains: whatever noise stands there says nothing.

    Parameters
    ----------
    ranks : sequence of int
        Of each site in the sum.
    """
    blocks, own = _blocks(manifest), np.asarray(ranks)
    counts = (own[None, :] > np.arange(max(own.max(), blocks.max() + 1))[:, None]).sum(axis=1)
    found: NDArray[np.float64] = np.where(
        counts[blocks] > 0, len(own) / np.maximum(counts[blocks], 1), 0.0
    )
    return found


def _blocks(manifest: AdapterManifest) -> NDArray[np.int64]:
    """Return the block of each value (P,); a head's are of the first, which every site trains."""
    found = np.zeros(manifest.length, dtype=np.int64)
    for segment in manifest.segments:
        found[segment.slice] = _of_segment(segment)
    return found


def _of_segment(segment: Segment) -> NDArray[np.int64]:
    if segment.kind == "A":
        return np.repeat(np.arange(segment.shape[0]), segment.shape[1])
    if segment.kind == "B":
        return np.tile(np.arange(segment.shape[1]), segment.shape[0])
    return np.zeros(segment.size, dtype=np.int64)
