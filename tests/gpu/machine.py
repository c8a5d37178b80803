"""What nvidia-smi says of the card: once, and again and again while something runs."""

import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

_INTERVAL_MS = 50


def ask(*names: str) -> list[str]:
    """The values of these of nvidia-smi's fields, of the first card."""
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return [value.strip() for value in answer.stdout.strip().split(",")]


def used_mib() -> int:
    """Memory of the card in use, by all processes."""
    return int(ask("memory.used")[0])


@dataclass(slots=True)
class Watched:
    """Filled when the watching ends. Empty on a machine without a GPU."""

    utilisation: list[int] = field(default_factory=list)  # percent of time in which a kernel ran
    memory_mib: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.utilisation:
            return "no GPU"
        return f"GPU {statistics.median(self.utilisation):.0f} % busy"


@contextmanager
def watching(device: str) -> Iterator[Watched]:
    """Sample the card's utilisation and memory while the body runs."""
    watched = Watched()
    if device != "cuda":
        yield watched
        return
    fields = "--query-gpu=utilization.gpu,memory.used"
    command = ["nvidia-smi", fields, "--format=csv,noheader,nounits", "--id=0", f"-lms={_INTERVAL_MS}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield watched
        finally:
            process.terminate()
            assert process.stdout is not None
            for line in process.stdout.read().splitlines():
                _take(watched, line.split(","))


def _take(watched: Watched, values: Sequence[str]) -> None:
    if len(values) == 2 and all(value.strip().isdigit() for value in values):
        watched.utilisation.append(int(values[0]))
        watched.memory_mib.append(int(values[1]))
