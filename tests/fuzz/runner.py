"""Checks the inputs of one target; records errors, log entries, hangs and growth of memory."""

import asyncio
import gc
import logging
import mmap
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.target import Checker, Target

MAX_CPU_S = 2.0  # of one input
MAX_WAIT_S = 60.0  # without the end of one input
MAX_GROWTH_BYTES = 48 * 2**20  # of resident memory, from the first quarter of a run to its end
MAX_FAILURES = 20
_SAMPLES = 40  # of resident memory, in a run
_WARM_UP_INPUTS = 2000
_INPUTS_A_TURN = 100
_SHOWN_CHARACTERS = 4000


class Hang(BaseException):
    """An input takes too long. Not an Exception, which the code under test may catch."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An input with an unexpected outcome."""

    target: str
    seed: str
    index: int
    what: str
    shown_input: str

    @property
    def repeat(self) -> str:
        """The command that makes and checks this input again."""
        return (
            f"python -m tests.fuzz --target {self.target} --seed {self.seed} --first {self.index} --inputs 1"
        )


@dataclass(slots=True)
class Result:
    """What became of a target's inputs."""

    target: str
    seed: str
    inputs: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0  # CPU
    growth_bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        commands = [{**asdict(each), "repeat": each.repeat} for each in self.failures]
        return {**asdict(self), "outcomes": dict(self.outcomes.most_common()), "failures": commands}


def run_target(
    target: Target,
    *,
    seed: str,
    inputs: int,
    first: int = 0,
    max_growth_bytes: int = MAX_GROWTH_BYTES,
    max_cpu_s: float = MAX_CPU_S,
    progress: Callable[[int], object] = lambda _index: None,
) -> Result:
    """Check inputs first, first + 1, ... of a target, in an event loop of its own.

    Args:
        target: what to fuzz.
        seed: any text; with the index of an input, it determines the input.
        inputs: how many.
        first: the index of the first one.
        max_growth_bytes: of resident memory.
        max_cpu_s: of one input.
        progress: is told the index of each input before it is checked.
    """
    result = Result(target.name, seed)
    gc.freeze()  # as the server: or else garbage waits until it is a quarter of all that was imported
    with asyncio.Runner() as runner, _unexpected_events() as events, _cpu_limit(max_cpu_s) as cpu_limit:
        runner.run(
            _run(
                target,
                result,
                range(first, first + inputs),
                events=events,
                cpu_limit=cpu_limit,
                progress=progress,
            )
        )
    gc.unfreeze()
    if result.growth_bytes > max_growth_bytes:
        what = f"resident memory grew by {result.growth_bytes} bytes, the limit is {max_growth_bytes}"
        result.failures.append(
            Failure(target.name, seed, first, what, f"inputs {first} to {first + inputs - 1}")
        )
    return result


async def _run(
    target: Target,
    result: Result,
    indices: range,
    *,
    events: list[str],
    cpu_limit: "_CpuLimit",
    progress: Callable[[int], object],
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: events.append(_describe_context(context)))
    resident: list[int] = []
    sample_every = max(1, len(indices) // _SAMPLES)
    async with target.open() as checker:
        started_s = time.process_time()
        for index in indices:
            progress(index)
            made = checker.make(Random(f"{result.seed}/{result.target}/{index}"))  # noqa: S311 - no secret
            what = await _check(checker, result, made, cpu_limit) + "".join(events)
            events.clear()
            if what:
                shown = repr(made)[:_SHOWN_CHARACTERS]
                result.failures.append(Failure(result.target, result.seed, index, what, shown))
                if len(result.failures) >= MAX_FAILURES:
                    break
            if result.inputs % _INPUTS_A_TURN == 0:
                await asyncio.sleep(0)  # the loop forgets the timers of inputs that never waited
            if result.inputs % sample_every == 0:
                resident.append(resident_bytes())
        result.cpu_s = time.process_time() - started_s
    if result.inputs >= _WARM_UP_INPUTS:
        result.growth_bytes = max(resident[len(resident) // 2 :]) - max(resident[: 1 + len(resident) // 4])


async def _check(checker: Checker, result: Result, made: object, cpu_limit: "_CpuLimit") -> str:
    """Count the outcome of an input; return what was unexpected, or nothing."""
    begun_s = time.process_time()
    what = ""
    try:
        # What waits for something that never comes takes no CPU: hence two limits.
        with cpu_limit:
            async with asyncio.timeout(MAX_WAIT_S):
                outcome = await checker.check(made)
        result.outcomes[outcome] += 1
    except (Exception, Hang):  # noqa: BLE001 - what is unexpected is the result
        what = traceback.format_exc()
    result.inputs += 1
    result.slowest_s = max(result.slowest_s, time.process_time() - begun_s)
    return what


def resident_bytes() -> int:
    """The resident memory of this process, without files: the kernel drops and reads those as it likes."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    return (resident - shared) * mmap.PAGESIZE


class _CpuLimit:
    """Raises `Hang` in this thread if the body of a `with` takes too much CPU."""

    def __init__(self, max_cpu_s: float) -> None:
        self._max_cpu_s = max_cpu_s

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, self._max_cpu_s)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@contextmanager
def _cpu_limit(max_cpu_s: float) -> Iterator[_CpuLimit]:
    def hang(_signal: int, _frame: object) -> None:
        raise Hang(f"an input took {max_cpu_s} s of CPU, the limit")

    before = signal.signal(signal.SIGVTALRM, hang)
    try:
        yield _CpuLimit(max_cpu_s)
    finally:
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _unexpected_events() -> Iterator[list[str]]:
    """Yield a list of what is logged as an error, which tells of exceptions that clients do not see."""
    events: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            events.append(f"logged: {record.getMessage()}\n{trace}")

    handler = Collect(logging.ERROR)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield events
    finally:
        root.removeHandler(handler)


def _describe_context(context: dict[str, Any]) -> str:
    error = context.get("exception")
    trace = "".join(traceback.format_exception(error)) if error else ""
    return f"event loop: {context.get('message')}\n{trace}"
