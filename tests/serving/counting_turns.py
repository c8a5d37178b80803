"""Counts the turns of an event loop, and slices of work."""

import asyncio

from serving.turns import Turns


class Loop:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.turn = 0
        self._is_running = True
        self._count()

    def _count(self) -> None:
        self.turn += 1
        if self._is_running:
            asyncio.get_running_loop().call_soon(self._count)

    def stop(self) -> None:
        """Count no more."""
        self._is_running = False


class CountingTurns(Turns):
    """Records each slice."""

    def __init__(self) -> None:
        super().__init__()
        self.costs_us: list[int] = []

    async def take(self, cost_us: int) -> None:
        """Record the slice, and wait for its turn."""
        self.costs_us.append(cost_us)
        await super().take(cost_us)
