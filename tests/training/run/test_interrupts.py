"""Signals set a flag, and the job stops where it is safe."""

import os
import signal

import pytest

from training.errors import Interrupted
from training.run.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_remembered_until_it_is_safe_to_stop(number: signal.Signals) -> None:
    """The signal itself raises nothing; the next check does, and says what was saved and how to continue."""
    before = signal.getsignal(number)
    interrupts = Interrupts()
    interrupts.raise_if_stopped("nothing")
    with interrupts.catching_signals():
        os.kill(os.getpid(), number)
        assert interrupts.received is number
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "a second one ends the process at once"
        os.kill(os.getpid(), signal.SIGHUP)  # but a terminal that closes may send several
    assert signal.getsignal(number) is before
    with pytest.raises(Interrupted, match=f"stopped by {number.name}: all saved; .*--resume"):
        interrupts.raise_if_stopped("all saved")


def test_a_job_under_nohup_outlives_its_terminal() -> None:
    """SIGHUP that was ignored stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupts = Interrupts()
        with interrupts.catching_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        interrupts.raise_if_stopped("nothing")
    finally:
        signal.signal(signal.SIGHUP, before)
