"""The good client's process: one call at a fixed rate on one connection, timed from when it was due.

`python -m tests.chaos.good_client PORT METHOD MESSAGE TOKEN`, with the message in hexadecimal, prints a line
after its first call. It calls until standard input ends, waits for missing answers, and prints its calls as
JSON.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass

import grpc

CALLS_PER_S = 100
_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the good client. Times are those of time.monotonic."""

    due_s: float
    latency_s: float
    code: str


async def call_until_told(port: int, method: str, message: bytes, token: str) -> list[Call]:
    """Call until standard input ends."""
    calls: list[Call] = []
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        send = channel.unary_unary(method)  # bytes in, bytes out

        async def call(due_s: float) -> None:
            try:
                await send(message, timeout=_TIMEOUT_S, metadata=metadata)
                code = "OK"
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            calls.append(Call(due_s, time.monotonic() - due_s, code))

        await send(message, timeout=_TIMEOUT_S, metadata=metadata)
        print("ready", flush=True)
        end = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        due_s, running = time.monotonic(), set[asyncio.Task[None]]()
        while not end.done():
            task = asyncio.create_task(call(due_s))
            running.add(task)
            task.add_done_callback(running.discard)
            due_s += 1 / CALLS_PER_S
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        await asyncio.gather(*running)
    return calls


def main() -> None:
    """Print every call."""
    port, method, message, token = sys.argv[1:]
    calls = asyncio.run(call_until_told(int(port), method, bytes.fromhex(message), token))
    print(json.dumps([(each.due_s, each.latency_s, each.code) for each in calls]))


if __name__ == "__main__":
    main()
