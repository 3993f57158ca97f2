"""How much of a room one tenant may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Places for all, of which one tenant may have as many as it leaves free.

    However many are greedy, one that has nothing yet finds a place (Choudhury and Hahne 1998,
    "Dynamic queue length thresholds for shared-memory packet switches", with a factor of 1).

    Attributes
    ----------
    places : int
    shared : bool
        Whether there are several tenants; a single one may have all.
    """

    places: int
    shared: bool

    @property
    def most(self) -> int:
        """Places that one tenant can ever have."""
        return max(1, self.places // 2) if self.shared else self.places

    def allows(self, mine: int, taken: int, more: int) -> bool:
        """Tell whether a tenant that has ``mine`` of all ``taken`` places may have ``more``."""
        left = self.places - taken - more
        if left < 0:
            return False
        return not self.shared or mine + more <= left or mine + more == 1
