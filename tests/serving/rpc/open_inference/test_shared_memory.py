"""System shared memory: what may be registered, offsets and sizes, and inference through it."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import (
    InvalidRequest,
    InvalidTensor,
    LenserveError,
    Overloaded,
    RegionExists,
    UnknownRegion,
    Unsupported,
)
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.shared_memory import Region, Regions, Span

SERVICE = "inference.GRPCInferenceService"
FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open keeps its objects on Linux
PREFIX = f"lenserve-test-{os.getpid()}-"
PATTERN = "lenserve-test-.*"
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this system keeps no shared memory in /dev/shm")


@pytest.fixture
def share() -> Iterator[Callable[[str, bytes], str]]:
    """Make a shared memory object as another process would: its key."""
    made: list[Path] = []

    def make(name: str, content: bytes) -> str:
        made.append(FOLDER / f"{PREFIX}{name}")
        made[-1].write_bytes(content)
        return f"/{PREFIX}{name}"

    yield make
    for file in made:
        file.unlink(missing_ok=True)


@pytest.fixture
async def regions() -> AsyncIterator[Regions]:
    """Regions of the tests' own keys, with tensors of at most 1000 bytes."""
    async with Regions(PATTERN, max_bytes=1000) as regions:
        yield regions


def test_a_part_of_a_region_is_read_and_written(regions: Regions, share: Callable[..., str]) -> None:
    """Offsets add up: that of the region in its object, and that of the tensor in the region."""
    key = share("a", b"0123456789")
    regions.register("r", key, 2, 6)

    assert regions.read(Span("r", 1, 3)) == b"345"
    regions.write(Span("r", 4, 2), b"ab")
    assert (FOLDER / key[1:]).read_bytes() == b"012345ab89"


@given(
    offset=st.integers(-5, 20) | st.integers(-(2**63), 2**63 - 1),
    size=st.integers(-5, 20) | st.integers(-(2**63), 2**63 - 1),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_nothing_outside_a_region_is_touched(
    regions: Regions, share: Callable[..., str], offset: int, size: int
) -> None:
    """Whatever a request names: bytes of the region, or an error and nothing written."""
    key = share("a", b"..0123456789..")
    regions.unregister("")
    regions.register("r", key, 2, 10)
    fits = offset >= 0 and size >= 1 and offset + size <= 10

    if fits:
        assert regions.read(Span("r", offset, size)) == b"0123456789"[offset : offset + size]
        regions.write(Span("r", offset, size), b"x" * size)
    else:
        with pytest.raises(InvalidTensor, match="not within shared memory region 'r' of 10 bytes"):
            regions.read(Span("r", offset, size))
        with pytest.raises(InvalidTensor):
            regions.write(Span("r", offset, size), b"x")
    content = (FOLDER / key[1:]).read_bytes()
    assert (len(content), content[:2], content[-2:]) == (14, b"..", b"..")
    assert b"x" not in content if not fits else content.count(b"x") == size


@given(
    offset=st.integers(0, 2**64 - 1) | st.integers(0, 20), size=st.integers(0, 2**64 - 1) | st.integers(0, 20)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_a_region_is_never_larger_than_its_object(
    regions: Regions, share: Callable[..., str], offset: int, size: int
) -> None:
    """Any 64-bit offset and size: within the object, or refused."""
    key = share("a", bytes(10))
    regions.unregister("")
    try:
        regions.register("r", key, offset, size)
    except InvalidRequest:
        assert size < 1 or offset + size > 10
    else:
        assert 1 <= size <= 10 - offset


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "//a",
        "../etc/passwd",
        "/../etc/passwd",
        "/..",
        ".",
        "a/b",
        "/a/b",
        "a\0b",
        "x" * 300,
        "/other-key",
    ],
)
def test_keys_outside_the_pattern_are_refused(regions: Regions, key: str) -> None:
    """No path leaves /dev/shm, and inside it only what the operator named is opened."""
    with pytest.raises(InvalidRequest, match=r"is not a shared memory key|is not one that the server allows"):
        regions.register("r", key, 0, 1)


def test_a_pattern_of_everything_opens_no_path() -> None:
    """The shape of a key is checked before the pattern."""
    for key in ("../etc/passwd", "/..", "..", "a/../b", "lenserve/../../etc/passwd"):
        with pytest.raises(InvalidRequest, match="is not a shared memory key"):
            Regions(".*").register("r", key, 0, 1)


def test_links_pipes_folders_and_nothing_are_refused(regions: Regions, tmp_path: Path) -> None:
    """A key is the name of a shared memory object, and of nothing that leads elsewhere or waits."""
    made = [FOLDER / f"{PREFIX}{kind}" for kind in ("link", "pipe", "folder")]
    (tmp_path / "secret").write_bytes(b"secret")
    try:
        made[0].symlink_to(tmp_path / "secret")
        os.mkfifo(made[1])
        made[2].mkdir()
        for name in ("link", "pipe", "folder", "nothing"):
            with pytest.raises(InvalidRequest, match=r"cannot be opened|is not a shared memory object"):
                regions.register("r", f"/{PREFIX}{name}", 0, 1)
    finally:
        made[0].unlink()
        made[1].unlink()
        made[2].rmdir()
    assert regions.registered() == []


def test_a_region_that_its_owner_cuts_fails_requests_alone(
    regions: Regions, share: Callable[..., str]
) -> None:
    """Truncated memory is an error with both numbers, no SIGBUS; and a write does not make it grow again."""
    key = share("a", bytes(100))
    regions.register("r", key, 0, 100)
    os.truncate(FOLDER / key[1:], 10)

    with pytest.raises(InvalidTensor, match="10 bytes are left of the 100 that the request names"):
        regions.read(Span("r", 0, 100))
    with pytest.raises(InvalidTensor, match="0 bytes are left of the 50"):
        regions.write(Span("r", 50, 50), b"x" * 50)
    assert (FOLDER / key[1:]).stat().st_size == 10
    assert regions.read(Span("r", 0, 10)) == bytes(10)


def test_a_write_that_memory_ends_is_an_error(
    regions: Regions, share: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects may have holes. Where the kernel can fill some alone, it says so only by its count."""
    regions.register("r", share("a", bytes(100)), 0, 100)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, start: pwrite(file, content[:7], start))

    with pytest.raises(InvalidTensor, match="7 bytes are left of the 50"):
        regions.write(Span("r", 0, 50), b"x" * 50)


def test_a_tensor_is_no_larger_than_a_message(regions: Regions, share: Callable[..., str]) -> None:
    """Memory is copied: who shares gigabytes does not get the server to take as much."""
    regions.register("r", share("a", bytes(2000)), 0, 2000)

    with pytest.raises(InvalidTensor, match="has 1001 bytes, the limit is 1000"):
        regions.read(Span("r", 0, 1001))
    assert len(regions.read(Span("r", 500, 1000))) == 1000


def test_names_are_registered_once_and_forgotten(regions: Regions, share: Callable[..., str]) -> None:
    """A second registration of a name is refused; after it is unregistered nobody can use it."""
    key = share("a", bytes(10))
    regions.register("r", key, 1, 8)
    with pytest.raises(RegionExists, match="'r' is already registered"):
        regions.register("r", key, 0, 1)
    (found,) = regions.registered()
    assert (found.name, found.key, found.offset, found.byte_size) == ("r", key, 1, 8)
    assert isinstance(regions.registered("r")[0], Region)

    regions.unregister("r")
    regions.unregister("r")  # no error, as in Triton
    with pytest.raises(UnknownRegion, match="'r' is not registered"):
        regions.registered("r")
    with pytest.raises(UnknownRegion):
        regions.read(Span("r", 0, 1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(found.descriptor)


def test_regions_are_limited(regions: Regions, share: Callable[..., str]) -> None:
    """Each holds a file descriptor, and those are finite."""
    key = share("a", bytes(10))
    for number in range(256):
        regions.register(str(number), key, 0, 1)

    with pytest.raises(Overloaded, match="256 shared memory regions are registered"):
        regions.register("one more", key, 0, 1)


def test_without_a_pattern_nothing_is_registered(share: Callable[..., str]) -> None:
    """Shared memory is off unless the operator turns it on."""
    regions = Regions()

    assert not regions.enabled
    with pytest.raises(Unsupported, match="system shared memory is off"):
        regions.register("r", share("a", bytes(10)), 0, 1)


def _span(region: str, byte_size: int, offset: int = 0) -> dict[str, pb.InferParameter]:
    return {
        "shared_memory_region": pb.InferParameter(string_param=region),
        "shared_memory_byte_size": pb.InferParameter(int64_param=byte_size),
        "shared_memory_offset": pb.InferParameter(int64_param=offset),
    }


def _infer(given: dict[str, Any], wanted: dict[str, Any], **fields: Any) -> pb.ModelInferRequest:
    tensor = {"name": "image", "datatype": "UINT8", "shape": (3, 8, 8, 3), "parameters": given}
    output = {"name": "probabilities", "parameters": wanted}
    return pb.ModelInferRequest(model_name="colours", inputs=[tensor], outputs=[output], **fields)


@pytest.fixture
async def stub(
    publish: Callable[..., object], serve: Callable[..., Any], connect: Callable[..., Any]
) -> AsyncIterator[Any]:
    """A stub of a server that takes the tests' keys."""
    publish()
    async with serve(shared_memory_pattern=PATTERN) as server:
        yield connect(server.grpc.port)


async def _register(stub: Any, name: str, key: str, byte_size: int) -> None:
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=byte_size)
    await stub.call(f"{SERVICE}/SystemSharedMemoryRegister", request)


async def test_tensors_go_through_shared_memory(stub: Any, share: Callable[..., str]) -> None:
    """The input is read from one region and the output is written to another: nothing of it travels."""
    pixels = np.zeros((3, 8, 8, 3), np.uint8) + np.array(COLOURS, np.uint8)[:, None, None]  # (N, H, W, C)
    await _register(stub, "in", share("in", b"--" + pixels.tobytes()), pixels.size + 2)
    key = share("out", b"\xff" * 100)
    await _register(stub, "out", key, 100)

    answer = await stub.call(
        f"{SERVICE}/ModelInfer", _infer(_span("in", pixels.size, 2), _span("out", 60, 8))
    )

    (output,) = answer.outputs
    assert (output.datatype, list(output.shape)) == ("FP32", [3, 3])
    assert output.parameters["shared_memory_region"].string_param == "out"
    assert output.parameters["shared_memory_byte_size"].int64_param == 36
    assert output.parameters["shared_memory_offset"].int64_param == 8
    assert list(answer.raw_output_contents) == [b""]
    written = (FOLDER / key[1:]).read_bytes()
    probabilities = np.frombuffer(written[8:44], "<f4").reshape(3, 3)
    assert probabilities.argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert written[:8] + written[44:] == b"\xff" * 64


@pytest.mark.parametrize(
    ("given_span", "wanted", "fields", "code", "message"),
    [
        (_span("in", 577), {}, {}, "INVALID_ARGUMENT", "bytes 0 to 577 are not within"),
        (_span("in", 575), {}, {}, "INVALID_ARGUMENT", "Expected 576, got 575"),
        (_span("nowhere", 576), {}, {}, "NOT_FOUND", "shared memory region 'nowhere' is not registered"),
        (
            _span("in", 576),
            _span("out", 35),
            {},
            "INVALID_ARGUMENT",
            "35 bytes of shared memory region 'out'",
        ),
        (_span("in", 576), {}, {"raw_input_contents": [b"x"]}, "INVALID_ARGUMENT", "has contents and shared"),
        (
            _span("in", 576),
            {**_span("out", 100), "classification": pb.InferParameter(int64_param=1)},
            {},
            "INVALID_ARGUMENT",
            "cannot be given as classes in shared memory",
        ),
        (
            {"shared_memory_region": pb.InferParameter(string_param="in")},
            {},
            {},
            "INVALID_ARGUMENT",
            "needs a 'shared_memory_byte_size' parameter",
        ),
        (_span("in", 576, -1), {}, {}, "INVALID_ARGUMENT", "expected an int64_param of at least 0"),
        (
            {**_span("in", 576), "shared_memory_region": pb.InferParameter(int64_param=1)},
            {},
            {},
            "INVALID_ARGUMENT",
            "expected string_param",
        ),
    ],
)
async def test_mixed_up_requests_are_refused(  # noqa: PLR0917 - parameters come by name
    stub: Any,
    share: Callable[..., str],
    given_span: dict[str, Any],
    wanted: dict[str, Any],
    fields: dict[str, Any],
    code: str,
    message: str,
) -> None:
    """Sizes that do not fit, regions that are not there, contents twice, parameters of other types."""
    await _register(stub, "in", share("in", bytes(576)), 576)
    await _register(stub, "out", share("out", bytes(100)), 100)

    refusal = await stub.refusal(f"{SERVICE}/ModelInfer", _infer(given_span, wanted, **fields))

    assert refusal.code == code
    assert message in refusal.message


async def test_regions_are_shown_and_unregistered(stub: Any, share: Callable[..., str]) -> None:
    """One by its name, all by none; an unknown one is NOT_FOUND, a second registration ALREADY_EXISTS."""
    status, unregister = (f"{SERVICE}/SystemSharedMemory{name}" for name in ("Status", "Unregister"))
    key = share("a", bytes(10))
    await _register(stub, "a", key, 10)
    await _register(stub, "b", key, 5)

    every = await stub.call(status, pb.SystemSharedMemoryStatusRequest())
    one = await stub.call(status, pb.SystemSharedMemoryStatusRequest(name="b"))
    unknown = await stub.refusal(status, pb.SystemSharedMemoryStatusRequest(name="c"))
    twice = pb.SystemSharedMemoryRegisterRequest(name="a", key=key, byte_size=1)
    exists = await stub.refusal(f"{SERVICE}/SystemSharedMemoryRegister", twice)
    await stub.call(unregister, pb.SystemSharedMemoryUnregisterRequest())
    none = await stub.call(status, pb.SystemSharedMemoryStatusRequest())

    assert {name: (each.key, each.byte_size) for name, each in every.regions.items()} == {
        "a": (key, 10),
        "b": (key, 5),
    }
    assert list(one.regions) == ["b"]
    assert (unknown.code, exists.code, len(none.regions)) == ("NOT_FOUND", "ALREADY_EXISTS", 0)


async def test_the_extension_is_announced_where_it_is_on(stub: Any) -> None:
    """And its absence by default is what test_inference_service.py sees."""
    answer = await stub.call(f"{SERVICE}/ServerMetadata", pb.ServerMetadataRequest())

    assert "system_shared_memory" in answer.extensions


async def test_memory_of_a_gpu_is_unimplemented(stub: Any) -> None:
    """Registering says so; there are none to show, and clients that tidy up first are not disturbed."""
    cuda = f"{SERVICE}/CudaSharedMemory"
    refusal = await stub.refusal(f"{cuda}Register", pb.CudaSharedMemoryRegisterRequest(name="a"))
    status = await stub.call(f"{cuda}Status", pb.CudaSharedMemoryStatusRequest())
    await stub.call(f"{cuda}Unregister", pb.CudaSharedMemoryUnregisterRequest())

    assert (refusal.code, refusal.reason, len(status.regions)) == ("UNIMPLEMENTED", "UNSUPPORTED", 0)


@given(
    name=st.text(max_size=5),
    key=st.text(max_size=20),
    offset=st.integers(0, 2**64 - 1),
    size=st.integers(0, 99),
)
def test_any_registration_is_taken_or_refused(name: str, key: str, offset: int, size: int) -> None:
    """Random keys for a pattern that takes all: an error of ours or a region, never another exception."""
    regions = Regions("lenserve-test-never.*|[^a-zA-Z0-9]*")
    try:
        regions.register(name, key, offset, size)
    except LenserveError:
        assert regions.registered() == []
    finally:
        regions.unregister("")
