"""Which method adapts a model: the only place that decides it."""

from __future__ import annotations

from fedllm.adapters.core import CoreAdapter
from fedllm.adapters.explained import ExplainedAdapter
from fedllm.adapters.fedsvd import FedSvd
from fedllm.adapters.method import AdapterMethod
from fedllm.adapters.plain import PlainAdapter
from fedllm.adapters.referring import ReferringAdapter
from fedllm.adapters.rolora import TURNS, AlternatingAdapter
from fedllm.models.manifest import AdapterManifest
from fedllm.models.shared import SharedModel


def adapter_of(model: SharedModel, number: int = 1) -> AdapterMethod:
    """Return the method by which a run adapts its model, as it is in one round.

    Parameters
    ----------
    number : int
        Of the round, from 1. What goes down and where a run starts is the same in all of them.
    """
    method = _method(model, number)
    return ReferringAdapter(model, number, method) if model.sent_reference else method


def _method(model: SharedModel, number: int) -> AdapterMethod:
    # Without adapters there is a head alone, whatever was asked for.
    match model.method if model.peft is not None else "lora":
        case "rolora":
            return AlternatingAdapter(model, number)
        case "fedsvd":
            return FedSvd(model, number)
        case "eva":
            return ExplainedAdapter(model, number)
        case "core":
            return CoreAdapter(model, number)
        case _:
            return PlainAdapter(model, number)


def sent_in_turn(model: SharedModel) -> tuple[AdapterManifest, ...]:
    """Return the layouts of what sites send, round after round; after the last the first again."""
    turns = TURNS if model.peft is not None and model.method == "rolora" else 1
    return tuple(adapter_of(model, number).up for number in range(1, turns + 1))
