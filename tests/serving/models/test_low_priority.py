"""Versions that load beside requests get less of the core than those."""

import os
import sys
from pathlib import Path

import pytest

from serving.batching.policy import BatchPolicy
from serving.bundle import Repository
from serving.engine.onnx import OnnxEngine
from serving.metrics.recorder import Metrics
from serving.models.loader import VersionLoader
from serving.models.low_priority import low_priority_threads
from serving.models.registry import Models
from tests.colours import Publish
from tests.serving.engines import CPU


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")
async def test_only_versions_that_load_after_the_first_scan_have_a_low_priority(
    publish: Publish, repository: Repository
) -> None:
    """At the start no request waits, and the thread that answers keeps its priority."""
    priorities: list[int] = []

    def load(file: Path) -> OnnxEngine:
        priorities.append(os.getpriority(os.PRIO_PROCESS, 0))
        return OnnxEngine.load(file, CPU, threads=1, max_batch_size=4)

    before = os.getpriority(os.PRIO_PROCESS, 0)
    publish()
    loader = VersionLoader(repository, load, policy=BatchPolicy(4), warm_sizes=(1,), metrics=Metrics())
    async with Models(loader, poll_interval_s=3600, background=low_priority_threads()) as models:
        await models.scanned()
        publish(rotate=1)
        await models.refresh()
        assert models.get("colours").default == 2
    assert priorities == [before, min(before + 5, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
