"""Which device is chosen, and why."""

import ctypes
from functools import partial
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from serving.engine import devices
from serving.engine.devices import choose_device, find_cuda, find_device
from serving.errors import DeviceUnavailable
from tests.serving.log_events import LogEvents


def test_cpu_is_chosen_on_request() -> None:
    """Even on a machine with GPUs."""
    device = choose_device("cpu", 2, "")
    assert (device.name, device.provider, device.reason) == ("cpu", "CPUExecutionProvider", "requested")


def test_auto_chooses_the_first_gpu() -> None:
    """The reason has the number of GPUs."""
    device = choose_device("auto", 2, "")
    assert (device.name, device.provider) == ("cuda:0", "CUDAExecutionProvider")
    assert device.reason == "auto: 2 CUDA device(s) found"


def test_auto_chooses_the_cpu_without_a_gpu_and_says_why() -> None:
    """The reason is why none was found."""
    device = choose_device("auto", 0, "there is no driver")
    assert (device.name, device.reason) == ("cpu", "auto: there is no driver")


@pytest.mark.parametrize(
    ("requested", "name"), [("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_a_requested_gpu_is_chosen(requested: str, name: str) -> None:
    """Without an index it is the first."""
    assert choose_device(requested, 2, "").name == name


@pytest.mark.parametrize("requested", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_a_gpu_is_refused_with_the_reason(requested: str) -> None:
    """There is no silent fallback."""
    with pytest.raises(
        DeviceUnavailable, match=f"^device {requested} was requested, but there is no driver$"
    ):
        choose_device(requested, 0, "there is no driver")


def test_an_index_past_the_last_gpu_is_refused() -> None:
    """The message has the index and the number of GPUs."""
    with pytest.raises(
        DeviceUnavailable, match=r"device cuda:2 was requested, but this machine has 2 CUDA device"
    ):
        choose_device("cuda:2", 2, "")


def test_there_is_a_reason_exactly_if_no_gpu_was_found() -> None:
    """On this machine, with or without a GPU."""
    count, why_none = find_cuda()
    assert bool(why_none) == (count == 0)


def test_a_gpu_without_its_libraries_is_not_used_and_the_log_warns(
    monkeypatch: pytest.MonkeyPatch, log_events: LogEvents
) -> None:
    """With auto the CPU is chosen, with a warning; cuda is refused."""
    driver = SimpleNamespace(
        cuInit=lambda _flags: 0,
        cuDeviceGetCount=partial(_answer, 2),
        cuDriverGetVersion=partial(_answer, 99000),
    )
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0")
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)
    monkeypatch.setattr(devices, "why_unusable", lambda: "")
    assert find_device("cuda:1").name == "cuda:1"
    monkeypatch.setattr(devices, "why_unusable", lambda: "libcublas.so.13 is missing")
    device = find_device("auto")
    assert (device.name, device.reason) == ("cpu", "auto: libcublas.so.13 is missing")
    (told,) = log_events.named("cuda_unusable")
    assert (told.levelname, told.devices, told.reason) == ("WARNING", 2, "libcublas.so.13 is missing")
    with pytest.raises(DeviceUnavailable, match=r"^device cuda was requested, but libcublas\.so\.13"):
        find_device("cuda")
    driver.cuDriverGetVersion = partial(_answer, 11080)
    with pytest.raises(DeviceUnavailable, match=r"but the NVIDIA driver supports CUDA 11\.8, ONNX"):
        find_device("cuda")


def test_cuda_devices_are_not_searched_if_the_cpu_was_requested() -> None:
    """That would load the driver."""
    device = find_device("cpu", find=lambda: pytest.fail("it looked"))
    assert (device.name, device.reason) == ("cpu", "requested")


def _answer(value: int, place: Any) -> int:  # noqa: ANN401 - ctypes has no public type of byref()
    """Return a value by reference, as functions of the driver do."""
    place._obj.value = value
    return 0
