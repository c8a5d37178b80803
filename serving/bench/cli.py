"""The command `lenserve bench`: options and output."""

import json
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from serving.bench.plan import SWEEP, Plan, loops
from serving.commandline import DONE, FAILED, Command, print_line, print_table, stderr
from serving.errors import UsageError


class Bench(Command):
    """Measure a running server's throughput and latency at several loads, and find its knee."""

    example: ClassVar[str] = "lenserve bench --model digits --concurrency 1,8,64 --p99-ms 20"

    model: str = Field(description="MODEL, MODEL@VERSION or MODEL@ALIAS")
    server: str = Field(default="127.0.0.1:8001", description="HOST:PORT; without a port: 8001")
    concurrency: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(
        default=[], description="requests in flight (closed loop), such as 1,8,64; without --rate: 1 to 64"
    )
    rate: list[Annotated[float, Field(gt=0, le=1_000_000)]] = Field(
        default=[],
        description="requests per second (open loop), such as 500,1000; latency starts at the due time",
    )
    seconds: float = Field(default=3.0, gt=0, le=3600, description="duration of each measurement")
    warm_up_seconds: float = Field(
        default=0.5, ge=0, le=600, description="warm-up before each measurement, not counted"
    )
    image: list[Path] = Field(
        default=[], description="image files to send, round-robin; default: noise in the network's input size"
    )
    processes: int = Field(default=1, ge=1, le=256, description="client processes, with one connection each")
    p99_ms: float | None = Field(default=None, gt=0, description="advise how to keep p99 within this limit")
    wait: bool = Field(default=False, description="first wait until the server and the model are ready")
    wait_timeout_s: float = Field(default=60.0, gt=0, le=86_400, description="seconds for --wait")
    timeout_s: float = Field(default=10.0, gt=0, le=3600, description="deadline of one request")
    token: str | None = Field(
        default=None, description="bearer token; set LENSERVE_TOKEN instead to keep it out of process lists"
    )
    metrics_url: str | None = Field(
        default=None,
        description="metrics URL of the server, such as http://HOST:8002/metrics, for more advice",
    )
    picture: Path | None = Field(default=None, description="SVG file to write: latency against throughput")
    as_json: bool = Field(default=False, alias="json", description="print one JSON object")

    def run(self) -> int:
        """Measure every load; return 1 if no request succeeded."""
        from serving.bench.advice import advise
        from serving.bench.report import draw_report, to_json, to_table
        from serving.bench.run import run_plan

        if self.picture and not self.picture.parent.is_dir():  # checked now, before minutes of measuring
            raise UsageError(
                f"--picture {self.picture}: {self.picture.parent} is not a directory; create it first"
            )
        if self.wait:
            from serving.client import Client

            with Client(self.server, token=self.token) as client:
                client.wait_ready(self.model, timeout_s=self.wait_timeout_s)
        p99_s = self.p99_ms / 1000 if self.p99_ms else None
        report = run_plan(self._plan(), stderr)
        answered = any(point.requests_per_s for point in report.points)
        if self.picture and answered:
            self.picture.write_text(draw_report(report, p99_s), encoding="utf-8")
        if self.as_json:
            print_line(json.dumps(to_json(report, self.server, p99_s)))
        else:
            print_table(to_table(report))
            print_line("\n".join(["", *advise(report.points, p99_s)]))
        return DONE if answered else FAILED

    def _plan(self) -> Plan:
        concurrencies = self.concurrency or ([] if self.rate else SWEEP)
        return Plan(
            server=self.server,
            model=self.model,
            loops=loops(concurrencies, self.rate),
            images=self.image,
            processes=self.processes,
            warm_up_s=self.warm_up_seconds,
            window_s=self.seconds,
            timeout_s=self.timeout_s,
            token=self.token,
            metrics_url=self.metrics_url,
        )
