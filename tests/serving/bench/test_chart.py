"""The picture is XML with every point and the knee inside its frame."""

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bench.chart import draw
from serving.bench.plan import ClosedLoop, OpenLoop
from tests.serving.bench.make_point import MakePoint

SVG = "{http://www.w3.org/2000/svg}"


@given(
    st.lists(st.tuples(st.integers(1, 200), st.floats(1e-5, 100)), min_size=1, max_size=6),
    st.none() | st.floats(1e-4, 10),
)
def test_every_point_is_inside_the_frame(
    make_point: MakePoint, measured: list[tuple[int, float]], p99_s: float | None
) -> None:
    """Two circles per point, p50 and p99, and one around the knee."""
    points = [
        make_point(ClosedLoop(number) if number % 2 else OpenLoop(number), rate=rate, latency_s=latency_s)
        for number, (rate, latency_s) in enumerate(measured, start=1)
    ]
    picture = ET.fromstring(draw(points, title="a < b & c", p99_s=p99_s))  # noqa: S314 - our own
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    circles = picture.findall(f"{SVG}circle")
    assert len(circles) == 2 * len(points) + 1
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    texts = [text.text or "" for text in picture.iter(f"{SVG}text")]
    assert "a < b & c" in texts
    assert any(text.startswith("knee: ") for text in texts)
    assert any("p99 limit" in text for text in texts) == (p99_s is not None)


def test_more_throughput_is_further_right_and_more_latency_higher(make_point: MakePoint) -> None:
    """The axes point right and up."""
    points = [make_point(ClosedLoop(count), rate=10 * count, latency_s=count / 100) for count in (1, 2)]
    picture = ET.fromstring(draw(points, title="t"))  # noqa: S314 - our own
    first, second = picture.findall(f"{SVG}circle")[:2]
    assert float(first.attrib["cx"]) < float(second.attrib["cx"])
    assert float(first.attrib["cy"]) > float(second.attrib["cy"])  # y grows downwards


def test_without_successful_requests_nothing_is_drawn(make_point: MakePoint) -> None:
    """The error has a message."""
    with pytest.raises(ValueError, match="no request succeeded"):
        draw([make_point(ClosedLoop(1), rate=0, latency_s=1.0)], title="t")
