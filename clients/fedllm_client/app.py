"""The ClientApps of a site and of the key authority: they unwrap a message and pass it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedllm.federation.authority.authority import Authority
from fedllm.federation.protocol.messages import (
    Draw,
    Join,
    OpenRound,
    OpenSum,
    Ready,
    Recover,
    Settle,
    Train,
    Unmask,
)
from fedllm.federation.protocol.wire import Wire
from fedllm.federation.transport.flower import answer

if TYPE_CHECKING:
    from fedllm.federation.site.site import Site

Request = TypeVar("Request", bound=Wire)


def make_client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """Return a ClientApp whose messages are answered by the site of their context.

    Parameters
    ----------
    site_of : callable
        Finds the site that a node is; called for each message, so it should remember.
    """
    app = ClientApp()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        return _answer(message, Join, site_of(context).join)

    @app.query("draw")
    def draw(message: Message, context: Context) -> Message:
        return _answer(message, Draw, site_of(context).draw)

    @app.train("round")
    def train(message: Message, context: Context) -> Message:
        return _answer(message, Train, site_of(context).train)

    @app.query("ready")
    def ready(message: Message, context: Context) -> Message:
        return _answer(message, Ready, site_of(context).ready)

    @app.query("settle")
    def settle(message: Message, context: Context) -> Message:
        return _answer(message, Settle, site_of(context).settle)

    @app.query("unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _answer(message, Unmask, site_of(context).unmask)

    @app.query("recover")
    def recover(message: Message, context: Context) -> Message:
        return _answer(message, Recover, site_of(context).recover)

    return app


def make_authority_app(authority: Authority) -> ClientApp:
    """Return a ClientApp whose messages are answered by the key authority."""
    app = ClientApp()

    @app.query("open_round")
    def open_round(message: Message, context: Context) -> Message:
        return _answer(message, OpenRound, authority.open_round)

    @app.query("open_sum")
    def open_sum(message: Message, context: Context) -> Message:
        return _answer(message, OpenSum, authority.open_sum)

    return app


def _answer(message: Message, kind: type[Request], handle: Callable[[Request], Wire]) -> Message:
    return answer(message, lambda header, blobs: handle(kind.from_wire(header, blobs)).to_wire())
