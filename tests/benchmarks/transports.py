"""What a call costs the server before anything is done with it: an echo of 3 KB, over each transport.

One core for the server, the client on another, medians of ROUNDS windows in which the transports take turns.
`bare` is the least that an application can do on the HTTP/2 server below `h2`: its floor. `socket` is the
least that anybody can do to run LeNet-5 for a client on another core: no HTTP, no message.
"""

import argparse
import json
import random
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.load import Request, framed, run_load
from tests.benchmarks.networks import FOLDER, lenet
from tests.benchmarks.peers.bare_socket import SIDE
from tests.benchmarks.peers.echo import METHOD
from tests.benchmarks.processes import CLIENT_CORES, Process, pinned
from tests.benchmarks.servers import wait_until

KINDS = ("bare", "h2", "grpc")
IN_FLIGHT = {1: (1, 1), 16: (4, 4)}  # connections, and streams of each
ROUNDS = 5
WINDOW_S = 1.5
REQUEST = Request(METHOD, framed(bytes(3136)))
_FIRST_REQUESTS = 500
_SOCKET_REQUESTS = 2000
_ANSWER_BYTES = 40


def main() -> None:
    """Print a table of CPU time and latency."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    FOLDER.mkdir(exist_ok=True)
    with ExitStack() as stack:
        scripts = Path(__file__).parent / "peers"
        servers = {kind: _start(kind, [scripts / "echo.py", kind], stack) for kind in KINDS}
        least = _start("socket", [scripts / "bare_socket.py", lenet().model_file], stack)
        measured = _measure(servers, least)
    if as_json:
        print(json.dumps(measured))
        return
    print("| transport | in flight | CPU us a call | p50 us |\n| --- | --- | --- | --- |")
    for name, rounds in measured.items():
        kind, in_flight = name.split()
        cpu, p50 = ([each[fact] for each in rounds] for fact in ("cpu_us", "p50_us"))
        told = f"{statistics.median(cpu):.0f} [{min(cpu):.0f}, {max(cpu):.0f}]"
        print(f"| {kind} | {in_flight} | {told} | {statistics.median(p50):.0f} |")


def _start(kind: str, arguments: Sequence[object], stack: ExitStack) -> tuple[Process, int]:
    log = FOLDER / f"echo-{kind}.log"
    command = [sys.executable, *map(str, arguments)]
    process = Process(command, log=log, environment={"PYTHONPATH": "."})
    stack.callback(process.stop)
    wait_until(lambda: log.read_text().endswith("\n"), process)
    port = int(log.read_text().split()[-1])
    return process, port


def _measure(
    servers: dict[str, tuple[Process, int]], least: tuple[Process, int]
) -> dict[str, list[dict[str, float]]]:
    order = random.Random(3)  # noqa: S311 - an order, no secret
    contenders = [(kind, in_flight) for kind in servers for in_flight in IN_FLIGHT]
    rates: dict[tuple[str, int], float] = {}
    measured: dict[str, list[dict[str, float]]] = {f"{kind} {n}": [] for kind, n in contenders}
    measured["socket 1"] = []
    connection = socket.create_connection(("127.0.0.1", least[1]))
    for number in range(ROUNDS + 1):
        facts = _ask_socket(connection, least[0])
        if number:
            measured["socket 1"].append(facts)
        for kind, in_flight in order.sample(contenders, len(contenders)):
            process, port = servers[kind]
            connections, streams = IN_FLIGHT[in_flight]
            rate = rates.get((kind, in_flight))
            count = _FIRST_REQUESTS if rate is None else max(_FIRST_REQUESTS, int(rate * WINDOW_S))
            cpu_s = process.cpu_s()
            load = run_load(REQUEST, port, connections=connections, streams=streams, requests=count)
            rates[kind, in_flight] = load.requests_per_s
            if number:  # the first only warms
                cost_us = (process.cpu_s() - cpu_s) / count * 1e6
                measured[f"{kind} {in_flight}"].append({"cpu_us": cost_us, "p50_us": load.p50_ms * 1e3})
    connection.close()
    return measured


def _ask_socket(connection: socket.socket, process: Process) -> dict[str, float]:
    latencies_s, pixels, cpu_s = [], bytes(SIDE * SIDE), process.cpu_s()
    with pinned(CLIENT_CORES):
        for _ in range(_SOCKET_REQUESTS):
            started_s = time.perf_counter()
            connection.sendall(pixels)
            connection.recv(_ANSWER_BYTES, socket.MSG_WAITALL)
            latencies_s.append(time.perf_counter() - started_s)
    cost_us = (process.cpu_s() - cpu_s) / _SOCKET_REQUESTS * 1e6
    return {"cpu_us": cost_us, "p50_us": statistics.median(latencies_s) * 1e6}


if __name__ == "__main__":
    main()
