"""Calls of 8 MB whose deadlines pass while the server works on them: does their memory come back?"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from serving.pb.lenserve.v1 import classifier_pb2 as pb
from tests.benchmarks.processes import CLIENT_CORES, pinned
from tests.chaos.victim import MODEL, TOKEN, Victim, running

COUNTS = (25, 1000)
AT_ONCE = (1, 8)
MOST_RATIO = 1.3
AFTER_S = 10.0

_HEIGHT, _WIDTH = 1333, 2000  # 8 MB as PNM, which costs the server a copy and a resize
_CLASSIFY = "/lenserve.v1.Classifier/Classify"
_GOOD_CALLS = 10
_PATIENCE_S = 60.0
_SHARES = (0.1, 0.8)  # of the time that a good call takes: deadlines pass in every phase of a call
_SEED = 3
_LEAST_LATE = 0.8  # of all calls: otherwise the measurement says nothing
_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))


@dataclass(frozen=True, slots=True)
class LateCalls:
    """A number of late calls, and the server's memory."""

    count: int
    at_once: int
    late: int  # calls that ended with DEADLINE_EXCEEDED
    before_mib: float
    after_mib: float

    @property
    def ratio(self) -> float:
        """Memory afterwards, as a ratio to before."""
        return self.after_mib / self.before_mib

    def misses(self) -> list[str]:
        """The musts that are not met, in words."""
        found = []
        if self.ratio > MOST_RATIO:
            found.append(f"above {MOST_RATIO}")
        if self.late < _LEAST_LATE * self.count:
            found.append("too few were late")
        return found


def measure(folder: Path, count: int, at_once: int, *, options: Sequence[str]) -> LateCalls:
    """Make late calls to a new server."""
    with running(folder, options) as victim, pinned(CLIENT_CORES):
        return asyncio.run(_measure(victim, count, at_once))


async def _measure(victim: Victim, count: int, at_once: int) -> LateCalls:
    image = b"P6 %d %d 255\n" % (_WIDTH, _HEIGHT) + bytes(_HEIGHT * _WIDTH * 3)
    message = pb.ClassifyRequest(model=MODEL, images=[pb.Image(encoded=image)]).SerializeToString()
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    generator = random.Random(_SEED)  # noqa: S311 - deadlines, no secret
    codes: list[str] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{victim.port}", options=_OPTIONS) as channel:
        classify = channel.unary_unary(_CLASSIFY)
        times_s = []
        for _ in range(_GOOD_CALLS):
            started_s = time.perf_counter()
            await classify(message, timeout=_PATIENCE_S, metadata=metadata)
            times_s.append(time.perf_counter() - started_s)
        before_mib = victim.resident_mib()

        async def client() -> None:
            while len(codes) < count:
                codes.append("")
                place = len(codes) - 1
                try:
                    timeout_s = min(times_s) * generator.uniform(*_SHARES)
                    await classify(message, timeout=timeout_s, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    codes[place] = error.code().name

        await asyncio.gather(*(client() for _ in range(at_once)))
    await asyncio.sleep(AFTER_S)
    late = codes.count(grpc.StatusCode.DEADLINE_EXCEEDED.name)
    return LateCalls(count, at_once, late, before_mib, victim.resident_mib())
