"""What operators see of a version's answers: `lenserve models show --metrics-url`."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import Description, Repository, reference_of
from serving.cli import main
from serving.metrics.live_answers import LiveAnswers
from tests.colours import Publish, write_colours
from tests.servers import Serve

Printed = pytest.CaptureFixture[str]


def _with_reference(folder: Path) -> Description:
    """A version that named each colour for a third of its test images."""
    description = write_colours(folder, rotate=0, lie=False)
    answers = np.eye(3)[[0, 1, 2] * 100]  # (N, K)
    return description.model_copy(update={"reference": reference_of(answers)})


async def _show(repository: Repository, url: str, *arguments: str) -> int:
    command = ["models", "show", *arguments, "--repository", str(repository.root), "--metrics-url", url]
    return await asyncio.to_thread(main, command)


async def test_an_operator_sees_answers_and_drift(
    serve: Serve, repository: Repository, publish: Publish, capsys: Printed
) -> None:
    """Beside the shares of the test images; a version that answered nothing says so."""
    repository.publish("colours", _with_reference)
    publish()
    repository.set_alias("colours", "stable", 1)
    green = np.zeros((1, 8, 8, 3), np.uint8)  # (N, H, W, C)
    green[..., 1] = 255
    async with serve() as server:
        assert server.http is not None
        url = f"http://127.0.0.1:{server.http.port}/metrics"
        for _ in range(150):
            await server.classifier.infer_tensor(green, model="colours")
        capsys.readouterr()
        assert await _show(repository, url, "colours@1") == 0
        one = capsys.readouterr().out
        assert await _show(repository, url, "colours@1", "colours@2") == 0
        both = capsys.readouterr().out
        assert await _show(repository, url, "colours") == 0
        every = capsys.readouterr().out
        assert await _show(repository, url, "colours", "--json") == 0
        as_json: dict[str, Any] = json.loads(capsys.readouterr().out)
    rows = {" ".join(line.split()) for line in one.splitlines()}
    assert {"answered images 150", "answered green 100.00% (test images: 33.33%)"} <= rows
    assert any(row.startswith("drift ") and row.endswith("of confidence in 150 images") for row in rows)
    assert ["answered images", "150", "0"] in [re.split(r"  +", line.strip()) for line in both.splitlines()]
    assert {"answered", "drift"} <= set(every.splitlines()[0].split())
    second, first = (version["live"] for version in as_json["versions"])
    assert (first["images"], first["labels"], first["window_images"]) == (150, {"green": 1.0}, 150)
    assert first["drift"]["labels"] > 0.25
    assert second == {
        "images": 0,
        "confidence": 0.0,
        "labels": {},
        "test_labels": {},
        "drift": {},
        "window_images": 0,
    }


async def test_a_server_that_is_not_there_is_named(
    repository: Repository, publish: Publish, capsys: Printed, free_ports: tuple[int, int]
) -> None:
    """One line, as for other wrong usage."""
    publish()
    url = f"http://127.0.0.1:{free_ports[0]}/metrics"
    assert await _show(repository, url, "colours") == 2
    said = capsys.readouterr().err
    assert f"--metrics-url {url} cannot be read: Connection refused; use http://HOST:PORT/metrics" in said


async def test_the_port_of_grpc_has_no_metrics(
    serve: Serve, repository: Repository, publish: Publish, capsys: Printed
) -> None:
    """The message gives the reason, and the port that has them."""
    publish()
    async with serve() as server:
        assert await _show(repository, f"http://127.0.0.1:{server.grpc.port}/metrics", "colours") == 2
    assert capsys.readouterr().err.endswith(
        "/metrics cannot be read: the answer has HTTP status 405; use http://HOST:PORT/metrics with the "
        "--http-port of a running server, 8002 by default\n"
    )


def test_drift_says_how_many_images_it_needs() -> None:
    """Below that, chance alone would look like drift; without a reference more images do not help."""
    few = LiveAnswers(79, 0.9, {"red": 1.0}, {"red": 0.5}, window_images=79)
    assert few.lines()[-1] == ("drift", "not known: 79 recent images, at least 100 are needed")
    assert replace(few, test_shares={}).lines()[-1] == ("drift", "not known")
