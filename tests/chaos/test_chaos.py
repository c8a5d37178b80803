"""The small form of `make chaos`: every attack for a moment, against one server with small limits."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest

from tests.chaos.attack import MIB, all_attacks
from tests.chaos.victim import METHOD, MODEL, TOKEN, Victim, running, small_request

SECONDS = 0.12
CONNECTIONS = 200
BODY_BYTES = MIB
MESSAGE_BYTES = 4 * MIB
PENDING_BYTES = 16 * MIB
MOST_GROWTH_MIB = PENDING_BYTES / MIB + 64
OPTIONS = (
    "--max-message-bytes",
    str(MESSAGE_BYTES),
    "--max-image-bytes",
    str(MIB),
    "--max-pending-bytes",
    str(PENDING_BYTES),
)

Attacker = subprocess.Popen[str]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A server with small limits."""
    with running(tmp_path_factory.mktemp("chaos"), OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def attacker(victim: Victim) -> Iterator[Attacker]:
    """A process that makes an attack for each line that it reads."""
    target = {
        "port": victim.port,
        "model": MODEL,
        "token": TOKEN,
        "connections": CONNECTIONS,
        "body_bytes": BODY_BYTES,
        "message_bytes": MESSAGE_BYTES,
    }
    command = [sys.executable, "-m", "tests.chaos.attacker", json.dumps(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.fixture(scope="module")
def channel(victim: Victim) -> Iterator[grpc.Channel]:
    """The good client's connection."""
    with grpc.insecure_channel(f"127.0.0.1:{victim.port}") as connection:
        yield connection


@pytest.mark.parametrize("name", all_attacks())
def test_a_good_client_is_served_during(
    name: str, victim: Victim, attacker: Attacker, channel: grpc.Channel
) -> None:
    """Every call of another client succeeds, and memory stays bounded."""
    assert attacker.stdin is not None
    assert attacker.stdout is not None
    infer, message = channel.unary_unary(METHOD), small_request()
    before_mib = victim.resident_mib()
    victim.reset_peak()
    attacker.stdin.write(f"{name} {SECONDS}\n")
    attacker.stdin.flush()
    while not select.select([attacker.stdout], [], [], 0)[0]:
        infer(message, timeout=5, metadata=(("authorization", f"Bearer {TOKEN}"),))
    sent = json.loads(attacker.stdout.readline())
    infer(message, timeout=5, metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert sent["connected"]
    assert victim.peak_mib() - before_mib <= MOST_GROWTH_MIB
