"""System shared memory: allowed keys, offsets and sizes, and inference through it."""

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
from serving.rpc.open_inference.shared_memory import Region, Regions, TensorLocation
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.stub import Connect, Stub

SERVICE = "inference.GRPCInferenceService"
FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open keeps its objects on Linux
PREFIX = f"lenserve-test-{os.getpid()}-"
PATTERN = "lenserve-test-.*"
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

Share = Callable[[str, bytes], str]
Parameters = dict[str, pb.InferParameter]

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs shared memory in /dev/shm")


@pytest.fixture
def share() -> Iterator[Share]:
    """Create a shared memory object as another process would, and return its key."""
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
    """Regions for the keys of the tests, with tensors of at most 1000 bytes."""
    async with Regions(PATTERN, max_bytes=1000) as regions:
        yield regions


def test_a_part_of_a_region_is_read_and_written(regions: Regions, share: Share) -> None:
    """The offset of the region in its object and that of the tensor in the region add up."""
    key = share("a", b"0123456789")
    regions.register("r", key, 2, 6)

    assert regions.read(TensorLocation("r", 1, 3)) == b"345"
    regions.write(TensorLocation("r", 4, 2), b"ab")
    assert (FOLDER / key[1:]).read_bytes() == b"012345ab89"


@given(
    offset=st.integers(-5, 20) | st.integers(-(2**63), 2**63 - 1),
    size=st.integers(-5, 20) | st.integers(-(2**63), 2**63 - 1),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_nothing_outside_a_region_is_touched(
    regions: Regions, share: Share, offset: int, size: int
) -> None:
    """Any offset and size: bytes of the region, or an error and nothing written."""
    key = share("a", b"..0123456789..")
    regions.unregister("")
    regions.register("r", key, 2, 10)
    fits = offset >= 0 and size >= 1 and offset + size <= 10

    if fits:
        assert regions.read(TensorLocation("r", offset, size)) == b"0123456789"[offset : offset + size]
        regions.write(TensorLocation("r", offset, size), b"x" * size)
    else:
        with pytest.raises(InvalidTensor, match="not within shared memory region 'r' of 10 bytes"):
            regions.read(TensorLocation("r", offset, size))
        with pytest.raises(InvalidTensor):
            regions.write(TensorLocation("r", offset, size), b"x")
    content = (FOLDER / key[1:]).read_bytes()
    assert (len(content), content[:2], content[-2:]) == (14, b"..", b"..")
    assert b"x" not in content if not fits else content.count(b"x") == size


@given(
    offset=st.integers(0, 2**64 - 1) | st.integers(0, 20), size=st.integers(0, 2**64 - 1) | st.integers(0, 20)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_a_region_is_never_larger_than_its_object(
    regions: Regions, share: Share, offset: int, size: int
) -> None:
    """Any 64-bit offset and size: inside the object, or rejected."""
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
def test_keys_outside_the_pattern_are_rejected(regions: Regions, key: str) -> None:
    """No path leaves /dev/shm, and in it only files that match the operator's pattern are opened."""
    with pytest.raises(InvalidRequest, match=r"is not a shared memory key|does not match the server"):
        regions.register("r", key, 0, 1)


def test_a_pattern_of_everything_opens_no_path() -> None:
    """The shape of a key is checked before the pattern."""
    for key in ("../etc/passwd", "/..", "..", "a/../b", "lenserve/../../etc/passwd"):
        with pytest.raises(InvalidRequest, match="is not a shared memory key"):
            Regions(".*").register("r", key, 0, 1)


def test_links_pipes_folders_and_missing_files_are_rejected(regions: Regions, tmp_path: Path) -> None:
    """Only shared memory objects are opened: nothing that leads elsewhere or blocks."""
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


def test_truncated_memory_fails_only_the_request(regions: Regions, share: Share) -> None:
    """An error with both numbers and no SIGBUS; and a write does not extend the object again."""
    key = share("a", bytes(100))
    regions.register("r", key, 0, 100)
    os.truncate(FOLDER / key[1:], 10)

    with pytest.raises(InvalidTensor, match="10 bytes are left of the 100 that the request needs"):
        regions.read(TensorLocation("r", 0, 100))
    with pytest.raises(InvalidTensor, match="0 bytes are left of the 50"):
        regions.write(TensorLocation("r", 50, 50), b"x" * 50)
    assert (FOLDER / key[1:]).stat().st_size == 10
    assert regions.read(TensorLocation("r", 0, 10)) == bytes(10)


def test_a_short_write_is_an_error(regions: Regions, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects may have holes. If the kernel can fill only some, it returns a smaller count."""
    regions.register("r", share("a", bytes(100)), 0, 100)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, start: pwrite(file, content[:7], start))

    with pytest.raises(InvalidTensor, match="7 bytes are left of the 50"):
        regions.write(TensorLocation("r", 0, 50), b"x" * 50)


def test_a_tensor_is_limited_like_a_message(regions: Regions, share: Share) -> None:
    """Memory is copied: the server must not allocate gigabytes because clients share that much."""
    regions.register("r", share("a", bytes(2000)), 0, 2000)

    with pytest.raises(InvalidTensor, match="has 1001 bytes, the limit is 1000"):
        regions.read(TensorLocation("r", 0, 1001))
    assert len(regions.read(TensorLocation("r", 500, 1000))) == 1000


def test_names_are_registered_once_and_unregistered(regions: Regions, share: Share) -> None:
    """A second registration of a name fails, and so does its use after it was unregistered."""
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
        regions.read(TensorLocation("r", 0, 1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(found.descriptor)


def test_regions_are_limited(regions: Regions, share: Share) -> None:
    """Each holds a file descriptor."""
    key = share("a", bytes(10))
    for number in range(256):
        regions.register(str(number), key, 0, 1)

    with pytest.raises(Overloaded, match="256 shared memory regions are registered"):
        regions.register("one more", key, 0, 1)


def test_without_a_pattern_registration_fails(share: Share) -> None:
    """Shared memory is off unless the operator turns it on."""
    regions = Regions()

    assert not regions.enabled
    with pytest.raises(Unsupported, match="system shared memory is off"):
        regions.register("r", share("a", bytes(10)), 0, 1)


def _location(region: str, byte_size: int, offset: int = 0) -> dict[str, pb.InferParameter]:
    return {
        "shared_memory_region": pb.InferParameter(string_param=region),
        "shared_memory_byte_size": pb.InferParameter(int64_param=byte_size),
        "shared_memory_offset": pb.InferParameter(int64_param=offset),
    }


def _infer(given: Parameters, wanted: Parameters, **fields: Any) -> pb.ModelInferRequest:
    tensor = {"name": "image", "datatype": "UINT8", "shape": (3, 8, 8, 3), "parameters": given}
    output = {"name": "probabilities", "parameters": wanted}
    return pb.ModelInferRequest(model_name="colours", inputs=[tensor], outputs=[output], **fields)


@pytest.fixture
async def stub(publish: Publish, serve: Serve, connect: Connect) -> AsyncIterator[Stub]:
    """A stub of a server that allows the keys of the tests."""
    publish()
    async with serve(shared_memory_pattern=PATTERN) as server:
        yield connect(server.grpc.port)


async def _register(stub: Stub, name: str, key: str, byte_size: int) -> None:
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=byte_size)
    await stub.call(f"{SERVICE}/SystemSharedMemoryRegister", request)


async def test_tensors_go_through_shared_memory(stub: Stub, share: Share) -> None:
    """The input is read from one region and the output is written to another; messages hold neither."""
    pixels = np.zeros((3, 8, 8, 3), np.uint8) + np.array(COLOURS, np.uint8)[:, None, None]  # (N, H, W, C)
    await _register(stub, "in", share("in", b"--" + pixels.tobytes()), pixels.size + 2)
    key = share("out", b"\xff" * 100)
    await _register(stub, "out", key, 100)

    answer = await stub.call(
        f"{SERVICE}/ModelInfer", _infer(_location("in", pixels.size, 2), _location("out", 60, 8))
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
    ("location", "wanted", "fields", "code", "message"),
    [
        (_location("in", 577), {}, {}, "INVALID_ARGUMENT", "bytes 0 to 577 are not within"),
        (_location("in", 575), {}, {}, "INVALID_ARGUMENT", "Expected 576, got 575"),
        (_location("nowhere", 576), {}, {}, "NOT_FOUND", "shared memory region 'nowhere' is not registered"),
        (
            _location("in", 576),
            _location("out", 35),
            {},
            "INVALID_ARGUMENT",
            "does not fit into 35 bytes of shared memory region 'out'",
        ),
        (
            _location("in", 576),
            {},
            {"raw_input_contents": [b"x"]},
            "INVALID_ARGUMENT",
            "has contents and shared",
        ),
        (
            _location("in", 576),
            {**_location("out", 100), "classification": pb.InferParameter(int64_param=1)},
            {},
            "INVALID_ARGUMENT",
            "cannot be returned as classes in shared memory",
        ),
        (
            {"shared_memory_region": pb.InferParameter(string_param="in")},
            {},
            {},
            "INVALID_ARGUMENT",
            "needs a 'shared_memory_byte_size' parameter",
        ),
        (_location("in", 576, -1), {}, {}, "INVALID_ARGUMENT", "expected an int64_param of at least 0"),
        (
            {**_location("in", 576), "shared_memory_region": pb.InferParameter(int64_param=1)},
            {},
            {},
            "INVALID_ARGUMENT",
            "expected string_param",
        ),
    ],
)
async def test_inconsistent_requests_are_rejected(  # noqa: PLR0917 - parameters come by name
    stub: Stub,
    share: Share,
    location: dict[str, Any],
    wanted: dict[str, Any],
    fields: dict[str, Any],
    code: str,
    message: str,
) -> None:
    """Sizes that do not fit, unknown regions, contents given twice, parameters of the wrong type."""
    await _register(stub, "in", share("in", bytes(576)), 576)
    await _register(stub, "out", share("out", bytes(100)), 100)

    refusal = await stub.refusal(f"{SERVICE}/ModelInfer", _infer(location, wanted, **fields))

    assert refusal.code == code
    assert message in refusal.message


async def test_regions_are_listed_and_unregistered(stub: Stub, share: Share) -> None:
    """One by name, or all; an unknown one is NOT_FOUND, a second registration ALREADY_EXISTS."""
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


async def test_the_extension_is_listed_if_it_is_on(stub: Stub) -> None:
    """By default it is not: see services/test_inference.py."""
    answer = await stub.call(f"{SERVICE}/ServerMetadata", pb.ServerMetadataRequest())

    assert "system_shared_memory" in answer.extensions


async def test_gpu_memory_is_unimplemented(stub: Stub) -> None:
    """Registering fails; the list is empty, and unregistering all regions is allowed."""
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
def test_any_registration_succeeds_or_fails_cleanly(name: str, key: str, offset: int, size: int) -> None:
    """Random keys for a wide pattern: a region or a LenserveError, never another exception."""
    regions = Regions("lenserve-test-never.*|[^a-zA-Z0-9]*")
    try:
        regions.register(name, key, offset, size)
    except LenserveError:
        assert regions.registered() == []
    finally:
        regions.unregister("")
