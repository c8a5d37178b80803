"""The callable that every engine runs: a batch of paths or bytes in, columns of labels out.

Decodes, resizes, runs and ranks as the server does. Also works alone, in `map_batches` of Ray Data or Daft,
in Dask or in Spark: it is created once in each process, from values that can be pickled.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serving.batch_job.columns import Columns, result_columns
from serving.batch_job.reading import Reader
from serving.bundle import apply_geometry, decode_image
from serving.bundle.decoder_messages import silence_decoders
from serving.bundle.images import Pixels
from serving.bundle.stored_repository import open_repository
from serving.bundle.urls import DEFAULT_CACHE
from serving.classify.results import Ranking, rank
from serving.engine.base import Engine, batch_buckets
from serving.engine.devices import find_device
from serving.engine.onnx import OnnxEngine
from serving.errors import BundleError, EngineError, LenserveError, OutOfMemory, forget_frames
from serving.models.loader import load_network
from serving.models.precision import choose_precision, read_cpu_flags

_Prepared = Pixels | LenserveError


@dataclass(frozen=True, slots=True)
class ClassifierOptions:
    """Everything that a `FileClassifier` needs. Can be pickled."""

    repository: Path | str  # directory or URL
    model: str
    version: int
    digest: str = ""  # expected digest of the version; empty: any
    reader: Reader = field(default_factory=Reader)
    top_k: int = 5
    device: str = "auto"
    precision: Literal["auto", "fp32", "int8", "fp16"] = "auto"
    max_batch_size: int = 32
    threads: int = 1  # that read files
    repository_cache: Path = DEFAULT_CACHE  # for a copy of the version, if the repository is a URL


class FileClassifier:
    """Classifies batches of images with one version. Creating it loads and proves the network."""

    def __init__(self, options: ClassifierOptions) -> None:
        """Load and prove the network.

        Raises:
            BundleError: the version is invalid, or is not the expected one.
            StoreError: the repository is a URL and cannot be read.
            UnknownModel: the repository has no such version.
            UsageError: the repository is not a directory.
            DeviceUnavailable: the device was requested but is not available.
        """
        silence_decoders()
        repository = open_repository(str(options.repository), options.repository_cache)
        bundle = repository.read(options.model, options.version)
        if options.digest not in ("", bundle.digest):
            raise BundleError(
                f"{bundle.folder} has the digest {bundle.digest}, expected {options.digest}: restore the "
                "published version"
            )
        device, size = find_device(options.device), options.max_batch_size
        self._options = options
        self._labels, self._geometry = bundle.manifest.labels, bundle.manifest.geometry
        # One thread: there are as many processes as cores, and that scales better than threads of one run.
        load = partial(OnnxEngine.load, device=device, threads=1, max_batch_size=size)
        sizes = batch_buckets(device, size) or (1, size)
        precision = choose_precision(options.precision, device, read_cpu_flags())
        self._engine: Engine = load_network(bundle, load, sizes=sizes, precision=precision).engine
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="read")

    def __call__(self, batch: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> Columns:
        """Classify a batch. Images that cannot be read or decoded get an error, and the others their labels.

        Args:
            batch: columns of the same length N. `path`: as the reader opens it, or any name if there is
                `bytes`: encoded images. `offset` and `size_bytes` of a tar file. Others are passed through.

        Returns: the columns of the batch without `bytes`, and label, probability, labels, probabilities,
            error, each (N,). An image with an error has no labels and the probability NaN.
        """
        size = self._options.max_batch_size
        results: list[Ranking | LenserveError] = []
        for encoded in self._read(self._jobs(batch), size):
            results += self._classify([self._prepare(each) for each in encoded])
        passed = {name: np.asarray(values) for name, values in batch.items() if name != "bytes"}
        return passed | result_columns(results)

    def _jobs(self, batch: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> list[Callable[[], bytes]]:
        """Return what reads each image."""
        if "bytes" in batch:
            return [partial(bytes, encoded) for encoded in batch["bytes"]]
        names = ("path", "offset", "size_bytes") if "offset" in batch else ("path",)
        rows = zip(*(batch[name] for name in names), strict=True)
        return [partial(self._options.reader.read, *row) for row in rows]

    def _read(self, jobs: Sequence[Callable[[], bytes]], size: int) -> Iterator[list[Future[bytes]]]:
        """Yield encoded images, `size` at a time; threads read the next ones while these are run."""
        ahead: deque[list[Future[bytes]]] = deque()
        for start in range(0, len(jobs), size):
            ahead.append([self._threads.submit(job) for job in jobs[start : start + size]])
            if len(ahead) > 1:
                yield ahead.popleft()
        yield from ahead

    def _prepare(self, encoded: Future[bytes]) -> _Prepared:
        """Decode and resize an image. Not in a thread: two on one core take 5 % more CPU than one."""
        try:
            pixels = decode_image(encoded.result(), self._options.reader.limits)
            return apply_geometry(pixels, self._geometry)
        except LenserveError as error:
            forget_frames(error)  # a result, not a failure
            return error

    def _classify(self, prepared: Sequence[_Prepared]) -> list[Ranking | LenserveError]:
        good = [pixels for pixels in prepared if not isinstance(pixels, LenserveError)]
        ranked = iter(self._run(good))
        return [each if isinstance(each, LenserveError) else next(ranked) for each in prepared]

    def _run(self, images: Sequence[Pixels]) -> list[Ranking | LenserveError]:
        """Run the network. If it fails on several images, run them one by one."""
        if not images:
            return []
        try:
            probabilities = self._engine.run(np.stack(images)).probabilities  # (N, K)
        except EngineError as error:
            if len(images) > 1:
                return [result for image in images for result in self._run([image])]
            if isinstance(error, OutOfMemory):  # not the image's fault: every one would fail
                raise
            forget_frames(error)
            return [error]
        return [rank(row, self._labels, self._options.top_k) for row in probabilities]
