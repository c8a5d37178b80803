"""Every alert fires and clears at the time that its rule says, by promtool's simulated clock."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.rules import DEPLOY, RULES_FILE, alerts

SERVER = 'job="lenserve",instance="a"'
CALLS = f'lenserve_requests_total{{{SERVER},method="/lenserve.v1.Classifier/Classify",code="%s"}}'
TOTAL = f'lenserve_stage_duration_seconds_bucket{{{SERVER},model="m",version="1",stage="total",le="%s"}}'
STATE = f'lenserve_version_state{{{SERVER},model="m",version="2",state="%s"}}'
IMAGES = f'lenserve_images_total{{{SERVER},model="m",version="1",outcome="OK"}}'


@dataclass(frozen=True)
class Case:
    """Series with one sample a minute, and when the alert is still quiet, fires, and has cleared."""

    series: dict[str, str]
    quiet_min: int
    fires_min: int
    cleared_min: int


def of_calls(code: str) -> Case:
    """2 % of calls end with this code for a quarter of an hour, then none."""
    return Case({CALLS % "OK": "0+980x60", CALLS % code: "0+20x15 300+0x45"}, 4, 12, 30)


def of_state(state: str, quiet_min: int, fires_min: int) -> Case:
    """A version is in this state from the fifth to the thirtieth minute."""
    return Case({STATE % state: "_x4 1+0x25 stale"}, quiet_min, fires_min, 40)


def of_gauge(series: str, value: str, quiet_min: int, fires_min: int) -> Case:
    """A gauge has this value from the fifth to the fiftieth minute."""
    return Case({series % SERVER: f"0+0x4 {value}+0x45 0+0x20"}, quiet_min, fires_min, 60)


CASES = {
    "LenserveDown": Case({'up{job="lenserve",instance="a"}': "1+0x4 0+0x9 1+0x20"}, 5, 8, 20),
    "LenserveAbsent": Case({'up{job="lenserve",instance="a"}': "1+0x4 stale _x20 1+0x20"}, 8, 16, 40),
    "LenserveNotReady": Case({'lenserve_ready{job="lenserve",instance="a"}': "1+0x4 0+0x9 1+0x20"}, 6, 9, 20),
    "LenserveErrors": of_calls("INTERNAL"),
    "LenserveRefusesCalls": of_calls("RESOURCE_EXHAUSTED"),
    "LenserveLate": of_calls("DEADLINE_EXCEEDED"),
    "LenserveSlow": Case(
        {
            TOTAL % "1.0": "0+90x20 1800+100x40",
            TOTAL % "2.5": "0+100x60",
            TOTAL % "+Inf": "0+100x60",
        },
        9,
        18,
        40,
    ),
    "LenserveStuck": Case(
        {
            'lenserve_pending_images{job="lenserve",instance="a"}': "3+0x20 0+0x20",
            IMAGES: "0+9x5 45+0x15 45+9x20",
        },
        5,
        15,
        30,
    ),
    # It stays refused, and the alert clears after an hour.
    "LenserveVersionRefused": Case({STATE % "refused": "_x4 1+0x100"}, 4, 8, 80),
    "LenserveModelNotServed": Case(
        {f'lenserve_model_ready{{{SERVER},model="m"}}': "1+0x4 0+0x9 1+0x30"}, 6, 9, 30
    ),
    "LenserveWorkersHang": Case(
        {f'lenserve_worker_hangs_total{{{SERVER},worker="1"}}': "0+0x4 1+0x80"}, 3, 8, 40
    ),
    "LenserveRepositoryProblems": of_gauge("lenserve_repository_problems{%s}", "1", 7, 14),
    "LenserveEventLoopLags": of_gauge("lenserve_event_loop_lag_seconds{%s}", "2", 7, 14),
    "LenserveDrift": of_gauge('lenserve_population_stability_index{%s,model="m"}', "0.3", 30, 45),
    "LenserveCaptureStopped": of_gauge("lenserve_capture_stopped{%s}", "1", 7, 14),
    "LenserveVersionBroken": of_state("broken", 3, 6),
    "LenserveVersionLoadsLong": of_state("loading", 12, 20),
    "LenserveWorkersDie": Case(
        {'lenserve_worker_deaths_total{job="lenserve",instance="a",worker="1"}': "0+0x4 0+1x4 4+0x60"},
        4,
        10,
        40,
    ),
    "LenserveRestarts": Case(
        {'process_start_time_seconds{job="lenserve",instance="a"}': "100+0x4 200+100x3 500+0x80"}, 5, 12, 60
    ),
    "LenserveRefusesConnections": Case(
        {'lenserve_refused_connections_total{job="lenserve",instance="a"}': "0+0x4 0+1x4 4+0x60"}, 4, 9, 30
    ),
    "LenserveFilesRunOut": Case(
        {
            'process_open_fds{job="lenserve",instance="a"}': "10+0x4 90+0x15 10+0x40",
            'process_max_fds{job="lenserve",instance="a"}': "100+0x60",
        },
        8,
        12,
        30,
    ),
}


def test_every_alert_has_a_case() -> None:
    """A new alert comes with the series that make it fire."""
    assert set(CASES) == set(alerts())


def test_every_alert_says_what_happened_and_how_bad_it_is() -> None:
    """A summary, a description, and a severity to route by."""
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        assert set(rule["annotations"]) == {"summary", "description"}, name


def test_every_alert_is_documented() -> None:
    """The page of operations has a row for each, and for no other."""
    page = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Lenserve\w+)` \|", page, re.MULTILINE) == list(alerts())


def test_every_alert_fires_and_clears(tmp_path: Path) -> None:
    """Quiet before its `for` is over, firing after it, and cleared when the cause is gone."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on the PATH: Debian's package prometheus brings it")
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{minute}m",
                    "exp_samples": [{"labels": "{}", "value": firing}],
                }
                for minute, firing in ((case.quiet_min, 0), (case.fires_min, 1), (case.cleared_min, 0))
            ],
        }
        for name, case in CASES.items()
    ]
    file = tmp_path / "cases.json"
    file.write_text(
        json.dumps({"rule_files": [str(RULES_FILE)], "evaluation_interval": "1m", "tests": tests})
    )
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
