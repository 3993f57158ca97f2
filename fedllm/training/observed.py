"""What is seen of a site's training: statistics for its operators, and whether it did its work.

Adapters can stay as they were while loss and epsilon look as usual, when hooks or target
modules do not fit the network. So every tensor that must have had a gradient is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedllm.errors import TrainingError
from fedllm.mechanisms.work import LocalStatistics
from fedllm.models.manifest import AdapterManifest, Segment

Vector = NDArray[np.float64]


class StepRecord:
    """What happened in the steps, and whether the update is what training must give."""

    def __init__(
        self, manifest: AdapterManifest, frozen_zeros: frozenset[str] = frozenset()
    ) -> None:
        self.losses: list[NDArray[np.float64]] = []
        self.norms: list[NDArray[np.float64]] = []
        self._manifest = manifest
        self._zeros = dict.fromkeys(frozen_zeros, False)
        self._expected: set[str] = set()
        self._seen: set[str] = set()
        self._must_move: set[str] = set()
        self._learned = False
        self._counted = 0
        self._empty = 0
        self._broken: list[str] = []
        self._problem = ""

    def end_of_step(self, vector: Vector, total: Vector, records: int) -> None:
        """Note which tensors had a gradient, and which had to have one."""
        new, self._counted = self.losses[self._counted :], len(self.losses)
        self._empty += records == 0
        own = {s.name: bool(vector[s.slice].any()) for s in self._manifest.segments}
        nonzero = {**self._zeros, **own}
        learned = any(part[np.isfinite(part)].any() for part in new)
        self._learned |= learned
        for segment in self._manifest.segments:
            if total[segment.slice].any():
                self._seen.add(segment.name)
                # Where every loss is zero, gradients may be left that are too small for float64.
                if learned:
                    self._must_move.add(segment.name)
            if learned and _passes_gradient(segment, nonzero):
                self._expected.add(segment.name)

    def broke_off(self, error: BaseException) -> None:
        """Note a unit at which the model or a library broke off; its words may quote a record."""
        self._broken.append(type(error).__name__)

    def check_private(self, update: NDArray[np.float32]) -> NDArray[np.float32]:
        """Note what is wrong with a noised update, and return it with finite values alone.

        A refusal would be made of nothing but noised steps; still, what leaves a site is an
        update in every case, so that nobody has to think about what another answer would tell.
        """
        try:
            self.check(update)
        except TrainingError as error:
            self._problem = error.message
        return np.nan_to_num(update)

    def look_connected(self) -> None:
        """Note when `check_connected` would refuse."""
        try:
            self.check_connected()
        except TrainingError as error:
            self._problem = error.message

    def check(self, update: NDArray[np.float32]) -> None:
        """Refuse an update that must not be released.

        An update of nothing is right where sampling drew nobody.

        Raises
        ------
        TrainingError
            If it is not finite, or a tensor that had to move did not.
        """
        if not np.isfinite(update).all():
            raise TrainingError("the update holds NaN or infinity", "lower the learning rates")
        still = [
            s.name
            for s in self._manifest.segments
            if s.name in self._must_move and not update[s.slice].any()
        ]
        self.check_connected(still)

    def check_connected(self, still: Sequence[str] = ()) -> None:
        """Refuse when a tensor had to have a gradient and had none, or is ``still``.

        Raises
        ------
        TrainingError
            Names the tensors.
        """
        dead = [*sorted(self._expected - self._seen), *still]
        if dead:
            raise TrainingError(
                f"training did not reach {', '.join(dead)}: the adapter is not connected "
                "to the loss, or the learning rate is too small for float32",
                "check lora.target_modules and the learning rates",
            )

    def statistics(self) -> LocalStatistics:
        """Return what the site's operators may look at."""
        losses = np.concatenate(self.losses) if self.losses else np.empty(0)
        norms = np.concatenate(self.norms) if self.norms else np.empty(0)
        norms = norms[np.isfinite(norms)]
        quantiles = np.quantile(norms, (0.1, 0.5, 0.9)).tolist() if len(norms) else []
        return LocalStatistics(
            loss=float(losses.mean()) if len(losses) else float("nan"),
            records_seen=len(losses),
            empty_batches=self._empty,
            norm_quantiles=tuple(quantiles),
            broken_units=dict(Counter(self._broken)),
            problem=self._problem,
        )


def _passes_gradient(segment: Segment, nonzero: dict[str, bool]) -> bool:
    # B = 0 stops the gradient of its A, and a head of zeros that of everything below it.
    if segment.group == "head":
        return True
    partner = segment.name.replace(".lora_A.", ".lora_B.")
    below_b = partner == segment.name or nonzero.get(partner, True)
    return below_b and nonzero.get("head.weight", True)
