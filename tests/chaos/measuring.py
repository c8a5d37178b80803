"""Measures one attack: a good client without it and during it, and the server's memory."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.settings import ServerSettings
from tests.benchmarks.processes import CLIENT_CORES, pinned
from tests.chaos.attack import MIB, Attack
from tests.chaos.good_client import Call
from tests.chaos.victim import METHOD, MODEL, TOKEN, Victim, running, small_request

MOST_P99_MS = 50.0
MOST_P99_RATIO = 5.0
MOST_LEFT_MIB = 64.0
PENDING_MIB = getattr(ServerSettings.model_fields.get("max_pending_bytes"), "default", 256 * MIB) / MIB
MOST_GROWTH_MIB = PENDING_MIB + MOST_LEFT_MIB
AFTER_S = 10.0

CONNECTIONS = 5000
BODY_BYTES = 16 * MIB

_CALM_SHARE = 0.3  # of the attack's time, without it
_SETTLE_S = 0.5
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Result:
    """What one attack did."""

    attack: str
    calm_p99_ms: float
    p99_ms: float
    calls: int  # of the good client, during the attack
    failed: dict[str, int]  # code -> calls of the good client in the whole run
    before_mib: float
    peak_mib: float
    after_mib: float
    after_s: float  # when that was, after the end of the attack
    cpu_share: float  # of the server's core, during the attack
    sent_mib: float
    connected: int
    answers: bool  # to a new client, after the attack

    @property
    def most_p99_ms(self) -> float:
        """The limit of this run."""
        return max(MOST_P99_MS, MOST_P99_RATIO * self.calm_p99_ms)

    def misses(self) -> list[str]:
        """The musts that are not met, in words."""
        found = []
        if self.p99_ms > self.most_p99_ms:
            found.append(f"p99 above {self.most_p99_ms:.0f} ms")
        if self.failed:
            found.append("failed: " + ", ".join(f"{count} {code}" for code, count in self.failed.items()))
        if self.peak_mib - self.before_mib > MOST_GROWTH_MIB:
            found.append(f"grew by more than {MOST_GROWTH_MIB:.0f} MiB")
        if self.after_mib - self.before_mib > MOST_LEFT_MIB:
            found.append(f"more than {MOST_LEFT_MIB:.0f} MiB left")
        if not self.answers:
            found.append("no answer afterwards")
        return found


def measure(attack: Attack, folder: Path, *, seconds: float, options: Sequence[str]) -> Result:
    """Attack a new server for some seconds."""
    with running(folder, options) as victim, _attacker(victim) as attacker, _good_client(victim) as client:
        _wait_until_ready(attacker, client)
        time.sleep(_SETTLE_S)
        calm_s = time.monotonic()
        time.sleep(seconds * _CALM_SHARE)
        before_mib, cpu_s = victim.resident_mib(), victim.cpu_s()
        victim.reset_peak()
        made = json.loads(_ask(attacker, f"{attack.name} {seconds}"))
        start_s, end_s = made["started_s"], made["ended_s"]
        cpu_s = victim.cpu_s() - cpu_s
        attacker.kill()
        after_mib = _wait_for_memory(victim, before_mib + MOST_LEFT_MIB)
        after_s, peak_mib = time.monotonic() - end_s, victim.peak_mib()
        answers = victim.answers()
        calls = _finish(client)
    calm = [call for call in calls if calm_s <= call.due_s < start_s]
    attacked = [call for call in calls if start_s <= call.due_s < end_s]
    codes = [call.code for call in calls if call.code != "OK"]
    return Result(
        attack=attack.name,
        calm_p99_ms=_p99_ms(calm),
        p99_ms=_p99_ms(attacked),
        calls=len(attacked),
        failed={code: codes.count(code) for code in sorted(set(codes))},
        before_mib=before_mib,
        peak_mib=peak_mib,
        after_mib=after_mib,
        after_s=after_s,
        cpu_share=cpu_s / (end_s - start_s),
        sent_mib=made["sent_bytes"] / MIB,
        connected=made["connected"],
        answers=answers,
    )


def _wait_for_memory(victim: Victim, enough_mib: float) -> float:
    """Resident memory as soon as it is small enough, at the latest after AFTER_S."""
    late_s = time.monotonic() + AFTER_S
    time.sleep(_SETTLE_S)
    while (resident_mib := victim.resident_mib()) > enough_mib and time.monotonic() < late_s:
        time.sleep(_POLL_S)
    return resident_mib


def _p99_ms(calls: Sequence[Call]) -> float:
    if not calls:
        return math.inf
    return float(np.percentile([call.latency_s for call in calls], 99)) * 1000


@contextmanager
def _attacker(victim: Victim) -> Iterator[subprocess.Popen[str]]:
    target = {
        "port": victim.port,
        "model": MODEL,
        "token": TOKEN,
        "connections": CONNECTIONS,
        "body_bytes": BODY_BYTES,
        "message_bytes": ServerSettings.model_fields["max_message_bytes"].default,
    }
    with _program("tests.chaos.attacker", json.dumps(target)) as process:
        yield process


@contextmanager
def _good_client(victim: Victim) -> Iterator[subprocess.Popen[str]]:
    with _program(
        "tests.chaos.good_client", str(victim.port), METHOD, small_request().hex(), TOKEN
    ) as process:
        yield process


@contextmanager
def _program(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a module on the clients' core."""
    with (
        pinned(CLIENT_CORES),
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _wait_until_ready(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{process.args!r} did not start")


def _ask(process: subprocess.Popen[str], line: str) -> str:
    """Send a line, and wait for the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline()


def _finish(client: subprocess.Popen[str]) -> list[Call]:
    """Every call that the good client has made."""
    text, _ = client.communicate()
    return [Call(*each) for each in json.loads(text)]
