"""The ClientApp: Flower's handlers, which only unwrap a message and call the site."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedllm.federation.flower import answer
from fedllm.federation.messages import Join, Settle, Train, Unmask, Wire
from fedllm.federation.site import Site

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

    @app.train("round")
    def train(message: Message, context: Context) -> Message:
        return _answer(message, Train, site_of(context).train)

    @app.query("settle")
    def settle(message: Message, context: Context) -> Message:
        return _answer(message, Settle, site_of(context).settle)

    @app.query("unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _answer(message, Unmask, site_of(context).unmask)

    return app


def _answer(message: Message, kind: type[Request], handle: Callable[[Request], Wire]) -> Message:
    return answer(message, lambda header, blobs: handle(kind.from_wire(header, blobs)).to_wire())
