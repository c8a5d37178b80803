"""Clients of other makers, each as a command, and whether they are on this machine.

    COMMAND HOST:PORT FOLDER COUNT

FOLDER has the serialized messages `request`, `answer`, `stream-request`, `stream-answer`, and `pixels.npy`.
A client prints one JSON object:

- `version`: its name and version
- `unary`, `after`: the outcome of the first and of the last call
- `stream`: how many of COUNT / 10 messages of a stream had which outcome
- `late`, `cancelled`: the outcome of a call that outlasts its deadline, and of one that is cancelled
- `burst`: how many of COUNT calls that begin at once, on one connection, had which outcome

An outcome is OK if the answer is the expected one, byte by byte, or the number of a status and its message.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".peers"
SCRIPTS = Path(__file__).parent / "peers"

Command = list[str | Path]


class Missing(Exception):
    """A client is not on this machine: the message says what is missing."""


def grpcio(_build: Path) -> Command:
    """The core of gRPC under Python."""
    return [sys.executable, SCRIPTS / "grpcio_client.py"]


def grpc_js(_build: Path) -> Command:
    """The one for Node, with Node's HTTP/2."""
    node = shutil.which("node")
    if node is None or not list(PEERS.glob("node/*.done")):
        raise Missing("no node, or no .peers/node: run tests/system/fetch_peers.sh")
    return ["env", f"NODE_PACKAGES={PEERS / 'node'}", node, SCRIPTS / "grpc_js_client.js"]


def triton(_build: Path) -> Command:
    """NVIDIA's client for Triton."""
    if not list(PEERS.glob("triton/*.done")):
        raise Missing("no .peers/triton: run tests/system/fetch_peers.sh")
    return ["env", "-u", "PYTHONPATH", PEERS / "triton" / "bin" / "python", SCRIPTS / "triton_client.py"]


def grpc_go(build: Path) -> Command:
    """The one for Go: from Go's cache of modules, or from Debian's golang-google-grpc-dev."""
    if shutil.which("go") is None:
        raise Missing("no go on the PATH")
    workspace = {"GOPROXY": "off"}  # nothing is downloaded
    modules = {**workspace, "GOFLAGS": "-mod=mod"}
    debian = {**workspace, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
    for variables in (workspace, modules, debian):
        if _compile(["go", "build", "-o", build / "grpc_go", "."], SCRIPTS / "grpc_go", variables):
            return [build / "grpc_go"]
    raise Missing("no google.golang.org/grpc in Go's cache of modules or in /usr/share/gocode")


def grpc_cpp(build: Path) -> Command:
    """The one for C++: Debian's libgrpc++-dev, or another that pkg-config knows."""
    if shutil.which("g++") is None or shutil.which("pkg-config") is None:
        raise Missing("no g++ or no pkg-config on the PATH")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "grpc++"], capture_output=True, text=True, check=False
    )
    if flags.returncode:
        raise Missing("pkg-config knows no grpc++")
    source, program = SCRIPTS / "grpc_cpp_client.cc", build / "grpc_cpp"
    if not _compile(["g++", "-std=c++17", "-O1", source, *flags.stdout.split(), "-o", program], build, {}):
        raise Missing("grpc++ does not compile")
    return [program]


COMPILED = ("grpc-go", "grpc-c++")  # which takes half a minute
CLIENTS: Mapping[str, Callable[[Path], Command]] = {
    "grpcio": grpcio,
    "grpc-js": grpc_js,
    "tritonclient": triton,
    "grpc-go": grpc_go,
    "grpc-c++": grpc_cpp,
}


def _compile(command: Command, folder: Path, variables: Mapping[str, str]) -> bool:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, timeout=240, check=False
    )
    return done.returncode == 0
