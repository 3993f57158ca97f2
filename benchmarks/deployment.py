"""Rounds over TLS: fedllm's coordinator and nodes against plain Flower's, on the same work.

Two nodes and a coordinator as processes of their own, TLS on loopback, state on disk on both
sides. What is measured is what carries the messages: nodes answer at once with bytes.

- *one exchange*: the same bytes to both nodes and back, by either.
- *a round's shape*: plain Flower's round is one exchange. A round of fedllm has five (key,
  training, agreement on the survivors, masks, sum), and packed ciphertexts instead of floats;
  the sizes are those of its BFV plan. Encryption itself is measured in ``encryption.py``.

Plain Flower is measured twice. Its defaults sleep for 3 seconds between two looks, at the nodes
and at the server; fedllm's looks are 0.1 and 0.2 seconds apart. So the peer of the ratios is
plain Flower that looks as often as fedllm, and the ratio to its defaults follows. What is left
is the design: plain Flower starts a process for each message, fedllm's node answers in its own.
fedllm and both take turns, in an order that is reversed every other turn.

Also prints how long ``fedllm client start`` takes until the node has answered its first
message. Ratios are of medians.

    python benchmarks/deployment.py [--rounds 3] [--turns 2] [--json PATH] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedllm.config import parse
from fedllm.encryption.plan import make_plan
from fedllm.federation.transport.flower import GridPresence, exchange, from_content, to_content
from fedllm.federation.transport.listener import Listener
from fedllm.federation.transport.superlink import SuperLink, grid_of
from fedllm.identity.config import FederationConfig
from fedllm.identity.kits import Kit, read_kit
from fedllm.identity.provisioning import provision

PARAMETERS = 1_000_000
NAMES = ("one", "two")
ENVIRONMENT = {
    **os.environ,
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONPATH": os.pathsep.join(sys.path),
    # Flower's programs start each other by name.
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
}
NODE = """
import sys, threading
from pathlib import Path
from flwr.clientapp import ClientApp
from fedllm.federation.transport.node import PartyNode
from fedllm.federation.transport.flower import answer
app = ClientApp()
@app.query("echo")
def echo(message, context):
    return answer(message, lambda header, blobs: (header, {"x": bytes(int(header))}))
address, ca, key = sys.argv[1:]
PartyNode(address, Path(ca), Path(key), app, lambda text: None).serve(threading.Event())
"""
# How long fedllm's coordinator and nodes wait between two looks while a round runs, in seconds.
SERVER_LOOK_S, NODE_LOOK_S = 0.1, 0.2
LOOK_SOONER = """
import time, types
def look_every(module, longest_s):
    sooner = types.ModuleType("time")
    sooner.__dict__.update(time.__dict__)
    sooner.sleep = lambda seconds: time.sleep(min(seconds, longest_s))
    module.time = sooner
"""
SUPERNODE = (
    LOOK_SOONER
    + f"""
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode
look_every(start_client_internal, {NODE_LOOK_S})
flower_supernode()
"""
)
SERVER_LOOKS = (
    LOOK_SOONER
    + f"""
from flwr.superlink.grid import http_grid
look_every(http_grid, {SERVER_LOOK_S})
"""
)
PLAIN_APP = """
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ClientApp()

@app.query("echo")
def echo(message, context):
    return Message(message.content, reply_to=message)

server = ServerApp()

@server.main()
def main(grid, context):
    rounds, out = context.run_config["rounds"], context.run_config["out"]
    times = {}
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(0.5)
    for size in (0, PARAMETERS):
        times[size] = []
        for number in range(rounds + 1):
            began = time.perf_counter()
            content = ArrayRecord({"x": Array(np.zeros(size, dtype=np.float32))})
            messages = [
                Message(RecordDict({"x": content}), node, "query.echo")
                for node in grid.get_node_ids()
            ]
            replies = list(grid.send_and_receive(messages, timeout=300))
            assert len(replies) == 2 and not any(reply.has_error() for reply in replies)
            if number:
                times[size].append(time.perf_counter() - began)
    with open(out, "w") as stream:
        json.dump({str(size): values for size, values in times.items()}, stream)
""".replace("PARAMETERS", str(PARAMETERS))
PLAIN_PROJECT = """[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "plain_app:server"
clientapp = "plain_app:app"
[tool.flwr.app.config]
rounds = ROUNDS
out = "OUT"
"""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Wait until somebody listens on a port."""
    deadline = time.monotonic() + 300
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise SystemExit("flower-superlink did not start")
        time.sleep(0.2)


@contextmanager
def children() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that end with the block."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        started.append(subprocess.Popen(command, stdout=quiet, stderr=quiet, env=ENVIRONMENT))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


def fedllm_rounds(kits: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Time exchanges and round shapes of fedllm; seconds each."""
    kit = read_kit(kits / "coordinator", "coordinator")
    assert kit.server_certificate is not None
    assert kit.server_key is not None
    listener = Listener("127.0.0.1", 0, kit.server_certificate, kit.server_key)
    link = SuperLink(folder / "fedllm.sqlite", listener)
    link.register(kit.roster.node_keys)
    link.start()
    plan = make_plan("bfv", 16, 2, PARAMETERS, True)
    key = len(plan.to_bytes()) + (1 << 17)
    shapes = {
        "exchange, empty": [(0, 0)],
        "exchange, 1M": [(4 * PARAMETERS, 4 * PARAMETERS)],
        "round, empty": [(0, 0)] * 5,
        "round, 1M": [
            (0, key),
            (4 * PARAMETERS + key, plan.update_bytes),
            (0, 0),
            (0, 0),
            (plan.update_bytes, 8 * PARAMETERS),
        ],
    }
    times: dict[str, list[float]] = {}
    with children() as start:
        for name in NAMES:
            site = read_kit(kits / name, "site")
            arguments = (f"127.0.0.1:{link.port}", str(site.ca_certificate), str(site.node_key))
            start(sys.executable, "-c", NODE, *arguments)
        with grid_of(link.open_run()) as grid:
            presence = GridPresence(grid)
            while len(presence.keys()) < 2:
                time.sleep(0.5)
            nodes = list(presence.keys().values())
            for name, steps in shapes.items():
                for number in range(rounds + 1):
                    began = time.perf_counter()
                    for down, up in steps:
                        content = to_content(str(up), {"x": bytes(down)})
                        for reply in exchange(
                            grid, "query.echo", dict.fromkeys(nodes, content), 300.0, presence
                        ):
                            assert reply.content is not None
                            assert len(from_content(reply.content)[1]["x"]) == up
                    if number:
                        times.setdefault(name, []).append(time.perf_counter() - began)
        link.close_runs()
    link.stop()
    return times


def plain_rounds(kit: Kit, folder: Path, rounds: int, sooner: bool) -> dict[str, list[float]]:
    """Time rounds of stock flower-superlink and flower-supernode; seconds each.

    With ``sooner`` they look for messages as often as fedllm's do.
    """
    from flwr.cli.build import build_fab_from_files
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab
    from flwr.supercore.control import ControlHttpClient

    port, out = free_port(), folder / "plain.json"
    ca = str(kit.ca_certificate)
    bin_folder = Path(sys.executable).parent
    tls = ("--ssl-certfile", str(kit.server_certificate), "--ssl-keyfile", str(kit.server_key))
    files = {
        "pyproject.toml": PLAIN_PROJECT.replace("ROUNDS", str(rounds))
        .replace("OUT", str(out))
        .encode(),
        "plain_app.py": ((SERVER_LOOKS if sooner else "") + PLAIN_APP).encode(),
    }
    content = build_fab_from_files(files)[0]
    with children() as start:
        database = ("--database", str(folder / "plain.sqlite"))
        where = ("--host", "127.0.0.1", "--port", str(port))
        start(
            str(bin_folder / "flower-superlink"), *tls, "--ssl-ca-certfile", ca, *where, *database
        )
        wait_for_port(port)
        for _ in NAMES:
            command = ("--superlink", f"127.0.0.1:{port}", "--root-certificates", ca)
            own = ("--port", str(free_port()))
            stock = (str(bin_folder / "flower-supernode"),)
            program = (sys.executable, "-c", SUPERNODE) if sooner else stock
            start(*program, *command, *own)
        address, pem = f"127.0.0.1:{port}", kit.ca_certificate.read_bytes()
        with ControlHttpClient.from_server_address(address, False, pem, []) as client:
            client.StartRun(StartRunRequest(fab=Fab(content=content)))
        deadline = time.monotonic() + 60 + 120 * rounds
        while not out.exists():
            if time.monotonic() > deadline:
                raise SystemExit("plain Flower did not finish in time")
            time.sleep(0.5)
        time.sleep(0.5)
    found = json.loads(out.read_text())
    return {"empty": found["0"], "1M": found[str(PARAMETERS)]}


def first_answer(kits: Path, folder: Path) -> float:
    """Return the seconds from ``fedllm client start`` to the first answered message."""
    kit = read_kit(kits / "coordinator", "coordinator")
    assert kit.server_certificate is not None
    assert kit.server_key is not None
    port = int(kit.address.rpartition(":")[2])
    listener = Listener("127.0.0.1", port, kit.server_certificate, kit.server_key)
    link = SuperLink(folder / "first.sqlite", listener)
    link.register(kit.roster.node_keys)
    link.start()
    policy = folder / "site.toml"
    policy.write_text('[model]\npath = "none"\n[data]\ntrain = "none.jsonl"\n')
    with children() as start, grid_of(link.open_run()) as grid:
        began = time.perf_counter()
        arguments = ("--kit", str(kits / NAMES[0]), "--policy", str(policy))
        start(sys.executable, "-m", "fedllm", "client", "start", *arguments)
        presence = GridPresence(grid)
        while not presence.keys():
            time.sleep(0.1)
        node = next(iter(presence.keys().values()))
        # An order that the site reads and refuses: everything but the model was loaded for it.
        list(exchange(grid, "query.join", {node: to_content("{}", {})}, 300.0, presence))
        seconds = time.perf_counter() - began
    link.close_runs()
    link.stop()
    return seconds


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one round, one turn")
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.turns = 1
    times: dict[str, dict[str, list[float]]] = {"fedllm": {}, "sooner": {}, "defaults": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        host = {"hosts": ["127.0.0.1"], "port": free_port()}
        values = {"name": "bench", "sites": list(NAMES), "coordinator": host}
        provision(parse(FederationConfig, values, "benchmark"), folder / "operator")
        kits = folder / "operator" / "kits"
        kit = read_kit(kits / "coordinator", "coordinator")
        for turn in range(options.turns):
            for who in list(times)[:: -1 if turn % 2 else 1]:
                own = folder / f"{who}-{turn}"
                own.mkdir()
                found = (
                    fedllm_rounds(kits, own, options.rounds)
                    if who == "fedllm"
                    else plain_rounds(kit, own, options.rounds, who == "sooner")
                )
                for work, seconds in found.items():
                    times[who].setdefault(work, []).extend(seconds)
        started = first_answer(kits, folder)
    result = print_ratios(times) | {"client start to first answer, s": started}
    print(f"client start to the first answer: {started:.1f} s")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def print_ratios(times: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Print medians of seconds, and what fedllm's are to plain Flower's; return those."""
    result = {}
    for work in ("empty", "1M"):
        sooner, defaults = (statistics.median(times[who][work]) for who in ("sooner", "defaults"))
        print(f"plain Flower, {work}: {sooner:.2f} s a round; with its defaults {defaults:.2f} s")
        for kind in ("exchange", "round"):
            mine = statistics.median(times["fedllm"][f"{kind}, {work}"])
            print(
                f"fedllm, {kind}, {work}: {mine:.2f} s, {mine / sooner:.2f} times plain Flower's "
                f"round looking as often ({mine / defaults:.2f} times with its defaults)"
            )
            result[f"{kind}, {work}, times plain"] = mine / sooner
            result[f"{kind}, {work}, times plain with its defaults"] = mine / defaults
    return result


if __name__ == "__main__":
    main()
