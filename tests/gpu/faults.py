"""Memory that runs out, in serving and in training: one request or one run fails, and says why.

On a GPU its memory is filled until little is left; in the rehearsal the process's address space is limited.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
import onnx

from serving.bundle import Bundle, Repository
from serving.client.client import Client
from serving.engine.devices import choose_device, find_cuda
from serving.engine.onnx import OnnxEngine
from serving.errors import EngineError
from serving.pb.inference import grpc_service_pb2 as pb
from tests.benchmarks.servers import Server, events, start_lenserve, wait_until
from tests.gpu.graphs import convolution, publish_convolution
from tests.gpu.rows import PartOptions, Rows

_SIDE, _MAPS = 224, 64  # maps of one image are 13 MB

# One batch of LeNet-5's first maps is 196 GiB.
_TOO_LARGE = (
    "network.maps=[8192, 16]",
    "training.batch_size=8192",
    "data.fake_images_per_class=3500",
    "data.near_duplicates=ignore",
)
_TRAINING_LIMIT_S = 30
_LOAD_LIMIT_S = 30


def measure(options: PartOptions, rows: Rows) -> None:
    """Serving first."""
    with TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        with rows.trying("a batch that does not fit into memory"):
            _engine(folder, options, rows)
        with rows.trying("a version that does not fit into memory"):
            _server(folder, options, rows)
        with rows.trying("training with a batch that does not fit into memory"):
            _training(folder, options, rows)


def _engine(folder: Path, options: PartOptions, rows: Rows) -> None:
    """A batch that is too large fails; the next small one, and the large one once there is memory, do not."""
    file, batch = folder / "model.onnx", options.sizes.batch
    onnx.save(convolution(_SIDE, _MAPS), file)
    device = choose_device(options.device, *find_cuda())
    engine = OnnxEngine.load(file, device, threads=1, max_batch_size=batch)
    images = np.random.default_rng(0).integers(
        0, 256, (batch, _SIDE, _SIDE, 3), dtype=np.uint8
    )  # (N, H, W, C)
    expected = engine.run(images[:1]).probabilities
    message = ""
    with _little_memory(options, os.getpid()):
        try:
            engine.run(images)
        except EngineError as error:
            message = str(error)
        small = engine.run(images[:1]).probabilities
    engine.run(images)
    fits = "out of memory" in message and "\n" not in message
    rows.add(
        "a batch that does not fit into memory",
        f"only that batch fails: «{message}»",
        wrong="" if fits and np.array_equal(small, expected) else "the message does not say what is wrong",
        message=message,
    )


def _server(folder: Path, options: PartOptions, rows: Rows) -> None:
    """A version that does not fit is refused; the one before goes on; loaded again when there is memory."""
    repository = Repository(folder / "repository")
    repository.root.mkdir()
    bundle = publish_convolution(repository, "wide", side=_SIDE, maps=_MAPS)
    cores = sorted(os.sched_getaffinity(0))
    control = ("--model-control", "--max-batch-size", str(options.sizes.batch), "--precision", "fp32")
    server = start_lenserve(bundle, ("--device", options.device, *control), cores=cores)
    try:
        with _little_memory(options, server.process.pid):
            publish_convolution(repository, "wide", side=_SIDE, maps=_MAPS)
            wait_until(lambda: "version_refused" in events(server.process.log), server.process)
            reason = events(server.process.log)["version_refused"]["reason"]
            before = _version(server, bundle)
        _load(server)
        after = _version(server, bundle)
    finally:
        server.process.stop()
    good = "out of memory" in reason and (before, after) == (1, 2)
    rows.add(
        "a version that does not fit into memory",
        f"refused: «{reason}»; version {before} answers; with memory again, version {after}",
        wrong="" if good else "expected versions 1 and 2, and a reason",
        reason=reason,
    )


def _version(server: Server, bundle: Bundle) -> int:
    image = np.zeros((_SIDE, _SIDE, 3), np.uint8)
    with Client(f"127.0.0.1:{server.port}") as client:
        return client.classify(image, model=bundle.model).version


def _load(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        load = channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            pb.RepositoryModelLoadRequest.SerializeToString,
            pb.RepositoryModelLoadResponse.FromString,
        )
        load(pb.RepositoryModelLoadRequest(model_name="wide"), timeout=_LOAD_LIMIT_S)


def _training(folder: Path, options: PartOptions, rows: Rows) -> None:
    """The real command, with a batch that no machine holds."""
    command = [sys.executable, "-m", "training", "run", "lenet5-fake", "--device", options.device]
    where = ["--repository", str(folder / "published"), "--run-dir", str(folder / "run")]
    overrides = [word for each in _TOO_LARGE for word in ("--set", each)]
    done = subprocess.run(
        [*command, *where, *overrides],
        capture_output=True,
        text=True,
        timeout=_TRAINING_LIMIT_S,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1:] or [""]
    good = done.returncode == 1 and "out of memory" in last[0] and "Traceback" not in done.stderr
    rows.add(
        "training with a batch that does not fit into memory",
        f"exit code {done.returncode}: «{last[0]}»",
        wrong="" if good else "expected exit code 1 and one sentence on memory",
        stderr=done.stderr[-2000:],
    )


@contextmanager
def _little_memory(options: PartOptions, pid: int) -> Iterator[None]:
    """Leave so much to a process on the device, and no more."""
    spare_bytes = options.sizes.spare_bytes
    if options.device == "cuda":
        import torch  # noqa: PLC0415 - to fill the card

        free_bytes, _ = torch.cuda.mem_get_info()
        filling = torch.empty(free_bytes - spare_bytes, dtype=torch.uint8, device="cuda")
        try:
            yield
        finally:
            del filling
            torch.cuda.empty_cache()
        return
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    size_kib = next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmSize:")
    )
    resource.prlimit(pid, resource.RLIMIT_AS, (size_kib * 1024 + spare_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)
