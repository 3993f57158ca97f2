"""How a simulation uses its machine."""

from __future__ import annotations

from fedllm.config.section import PositiveInt, Section


class EngineSection(Section):
    """How a simulation uses this machine.

    Attributes
    ----------
    threads : int, optional
        CPU threads of one site's training; all cores when left out. The same number
        gives the same result with every engine.
    """

    threads: PositiveInt | None = None
