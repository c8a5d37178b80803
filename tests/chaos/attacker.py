"""The attacker's process: makes the attacks named on its standard input, each for a number of seconds.

`python -m tests.chaos.attacker TARGET`, where TARGET is the JSON of the fields of `Target`, reads lines such
as `resets 10`. After each attack it prints one line of JSON: when it was made, and what it sent.
"""

import json
import math
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

from tests.chaos.attack import Attack, Target, all_attacks

_NICENESS = 19  # the good client, on the same core, comes first
_NEXT_ALARM_S = 2.0


class Over(BaseException):
    """The time of an attack is over. Not an Exception, so that no attack continues after it."""


def main() -> None:
    """Attack until standard input ends."""
    os.nice(_NICENESS)
    raise_descriptors()
    fields = json.loads(sys.argv[1])
    signal.signal(signal.SIGALRM, _end)
    attacks = all_attacks()
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        target = Target(**fields)
        if not attacks[name].has_token:
            target.token = ""
        started_s, ended_s = make(attacks[name], target, float(seconds))
        made = {"started_s": started_s, "ended_s": ended_s}
        print(json.dumps(made | {"sent_bytes": target.sent_bytes, "connected": target.connected}), flush=True)


def make(attack: Attack, target: Target, seconds: float) -> tuple[float, float]:
    """Attack for some seconds from the first connection on, then close all; return both times."""
    started_s = math.nan

    def begin() -> None:
        nonlocal started_s
        started_s = time.monotonic()
        # Python drops an exception that is raised during garbage collection: hence more than one alarm.
        signal.setitimer(signal.ITIMER_REAL, seconds, _NEXT_ALARM_S)

    target.begin = begin
    with suppress(Over):
        attack.run(target)
    signal.setitimer(signal.ITIMER_REAL, 0)
    ended_s = time.monotonic()
    target.close()
    return started_s, ended_s


def raise_descriptors() -> None:
    """Allow this process, and the children it starts, as many open files as the system lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _end(_number: int, _frame: FrameType | None) -> None:
    raise Over


if __name__ == "__main__":
    main()
