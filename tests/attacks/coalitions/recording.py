"""Sites that compute nothing: what they would have added up is written down instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from fedllm.canonical import sha256_hex
from fedllm.encryption import masks as mask_streams
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.schemes import PublicRoundKey
from fedllm.encryption.survivors import holders_of
from fedllm.federation.site.data import Datasets
from fedllm.federation.site.site import Site
from fedllm.federation.site.work import SiteWork, TrainingAtSite
from fedllm.mechanisms import LocalResult, LocalStatistics
from fedllm.randomness import RandomStream

UNITS = 8


class Recorder:
    """Stands for training and for streams of masks; see `nothing_computed`."""

    def __init__(self) -> None:
        self.adapter, self.update = b"", ""
        self.parts: list[tuple[int, bytes]] | None = None
        self.left: tuple[Reveal, tuple[str, ...], int] | None = None

    def expand(self, parts: Iterable[tuple[int, bytes]], plan: EncryptionPlan) -> Any:
        """Instead of the sum of streams, the list of them."""
        return list(parts)

    def result(self, sampling: RandomStream, length: int) -> LocalResult:
        """Note what the update would follow from: its batch and its adapter."""
        self.update = sha256_hex(sampling.uint64(4).tobytes() + self.adapter)
        zeros = np.zeros(length, dtype=np.float32)
        return LocalResult(zeros, LocalStatistics(0.0, 0, 0, ()), 1.0)

    def encrypt(
        self,
        levels: Any,
        plan: EncryptionPlan,
        key: PublicRoundKey,
        masks: Any,
        statement: str = "",
    ) -> bytes:
        """Note the masks that are added."""
        self.parts = masks
        return b""


def nothing_computed(patch: pytest.MonkeyPatch) -> Recorder:
    """Leave out what sites compute of records, and the encryption, which is not what is tried."""
    recorder, keys = Recorder(), dict[bytes, PublicRoundKey]()
    read, work = PublicRoundKey.from_bytes, SiteWork.train
    escrow = mask_streams.SiteMasks.escrow

    def left(self: mask_streams.SiteMasks, *about: Any) -> Any:
        found = escrow(self, *about)
        if found is not None:
            survivors = self._settled()
            holders = holders_of(self.answering(survivors), self.site)
            needed = len(holders) + 1 - len(found.points)
            recorder.left = self._reveal(survivors), holders, needed
        return found

    def train(self: SiteWork, order: Any, *rest: Any) -> Any:
        recorder.adapter = order.adapter.tobytes()
        return work(self, order, *rest)

    def once(plan: EncryptionPlan, blob: bytes) -> PublicRoundKey:
        # Under one plan; TenSEAL takes milliseconds for each.
        return keys[blob] if blob in keys else keys.setdefault(blob, read(plan, blob))

    def recorded(self: TrainingAtSite, settings: Any, sampling: RandomStream, noise: Any) -> Any:
        return recorder.result(sampling, self.length)

    patch.setattr(PublicRoundKey, "from_bytes", once)
    patch.setattr(SiteWork, "require_trainable", lambda *_: None)
    patch.setattr(SiteWork, "train", train)
    patch.setattr(Site, "_datasets", lambda *_: Datasets(None, None, ""))  # type: ignore[arg-type]
    patch.setattr(Site, "_require_data", lambda *_: None)
    patch.setattr(TrainingAtSite, "units", property(lambda work: UNITS))
    patch.setattr(TrainingAtSite, "train", recorded)
    patch.setattr(mask_streams, "_expand", recorder.expand)
    patch.setattr(mask_streams.SiteMasks, "escrow", left)
    patch.setattr("fedllm.federation.site.site.encrypt_levels", recorder.encrypt)
    return recorder
