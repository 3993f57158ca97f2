"""Machines of their own, as network namespaces around one switch; links can be cut."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

HUB = "10.87.31.1"


class Network:
    """Namespaces named after this process; the coordinator is the hub."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def _space(self, name: str) -> str:
        number = self._names.index(name) if name in self._names else "hub"
        return f"fedllm-{os.getpid()}-{number}"

    def inside(self, name: str) -> list[str]:
        """Return what starts a command on a machine."""
        return ["ip", "netns", "exec", self._space(name)]

    def build(self) -> None:
        """Make the machines and their links."""
        hub = self._space("coordinator")
        ip("netns", "add", hub)
        ip("-n", hub, "link", "set", "lo", "up")
        ip("-n", hub, "link", "add", "switch", "type", "bridge")
        ip("-n", hub, "addr", "add", f"{HUB}/24", "dev", "switch")
        ip("-n", hub, "link", "set", "switch", "up")
        for number, name in enumerate(self._names):
            space, port = self._space(name), f"port{number}"
            ip("netns", "add", space)
            ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "out")
            ip("-n", hub, "link", "set", "out", "netns", space)
            ip("-n", hub, "link", "set", port, "master", "switch", "up")
            ip("-n", space, "addr", "add", f"10.87.31.{number + 10}/24", "dev", "out")
            ip("-n", space, "link", "set", "out", "up")

    def cut(self, name: str) -> None:
        """Pull a machine's cable."""
        port = f"port{self._names.index(name)}"
        ip("-n", self._space("coordinator"), "link", "set", port, "down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        port = f"port{self._names.index(name)}"
        ip("-n", self._space("coordinator"), "link", "set", port, "up")

    def remove(self) -> None:
        """Take everything down."""
        for name in ("coordinator", *self._names):
            subprocess.run(
                ["ip", "netns", "del", self._space(name)], capture_output=True, check=False
            )


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """Make a network, or skip the test with the reason why there can be none."""
    made = Network(names)
    try:
        made.build()
    except FileNotFoundError:
        pytest.skip("network namespaces need the program ip (iproute2)")
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        made.remove()
