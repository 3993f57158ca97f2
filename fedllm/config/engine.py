"""How a simulation uses its machine."""

from __future__ import annotations

from fedllm.config.section import Device, PositiveInt, Section


class EngineSection(Section):
    """How a simulation uses this machine.

    Attributes
    ----------
    threads : int, optional
        CPU threads of one site's training; all cores when left out. The same number
        gives the same result with every engine.
    device : str, optional
        Where models compute: "cpu", "cuda" or "cuda:1" (a GPU), or "auto", which takes a GPU if
        there is one; the processor when left out. Is never sent to a site, which has its own
        (``model.device`` of its policy).
    """

    threads: PositiveInt | None = None
    device: Device | None = None
