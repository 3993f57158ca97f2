"""What comes over the wire is strict, and no larger than is said."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fedllm.errors import PeerError
from fedllm.federation.protocol import wire
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.messages import Drawn, DrawnHeader, SumOpenedHeader
from fedllm.federation.protocol.statements import hex_bytes


def test_digits_that_are_none_are_a_peers_fault():
    assert hex_bytes("00ff") == b"\x00\xff"
    with pytest.raises(PeerError, match="a peer sent digits that are not hexadecimal"):
        hex_bytes("zz")


def test_a_header_may_be_as_long_as_is_allowed_and_no_longer(monkeypatch):
    text, blobs = Drawn(DrawnHeader(site="anne", seed="00")).to_wire()
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", len(text))
    assert Drawn.from_wire(text, blobs).header.site == "anne"
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", len(text) - 1)
    with pytest.raises(PeerError, match=f"a Drawn message has a header of {len(text)} bytes"):
        Drawn.from_wire(text, blobs)
    with pytest.raises(PeerError, match=r"has the parts \['x'\]"):
        monkeypatch.undo()
        Drawn.from_wire(text, {"x": b""})


def test_headers_are_strict_closed_and_never_changed():
    header = SumOpenedHeader()
    assert (header.count, header.refusal) == (0, None)
    with pytest.raises(ValidationError):
        header.count = 2
    with pytest.raises(ValidationError):
        SumOpenedHeader(count="2")
    with pytest.raises(ValidationError):
        SumOpenedHeader(more=2)


def test_how_many_units_a_site_may_say():
    assert CohortMember(name="a", mask_key="", signature="").units == 0
    for units in (0, 2**53 - 1):
        assert CohortMember(name="a", mask_key="", signature="", units=units).units == units
    for units in (-1, 2**53):
        with pytest.raises(ValidationError):
            CohortMember(name="a", mask_key="", signature="", units=units)
