"""Signals set a flag, and the job stops where it is safe."""

import os
import signal

import pytest

from training.errors import Interrupted
from training.run.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_until_it_is_safe_to_stop(number: signal.Signals) -> None:
    """The signal itself raises nothing; the next check does, and says what was saved and how to continue."""
    before = signal.getsignal(number)
    interrupts = Interrupts()
    interrupts.raise_if_stopped("nothing")
    with interrupts.catching_signals():
        os.kill(os.getpid(), number)
        assert interrupts.received is number
        assert signal.getsignal(number) is signal.SIG_DFL, "a second one ends the process at once"
    assert signal.getsignal(number) is before
    with pytest.raises(Interrupted, match=f"stopped by {number.name}: all saved; .*--resume"):
        interrupts.raise_if_stopped("all saved")
