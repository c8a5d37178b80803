"""The server's options, as one frozen object that is created once and passed down."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from serving.bundle.images import DEFAULT_LIMITS, ImageLimits, MaxImageBytes, MaxImagePixels
from serving.bundle.manifest import Strict
from serving.bundle.mirror import COPY, KEPT_VERSIONS
from serving.bundle.urls import DEFAULT_CACHE, DEFAULT_REPOSITORY, RepositoryLocation, copy_folder, is_url
from serving.cpu_quota import available_cores
from serving.validation_errors import matching

Port = Annotated[int, Field(ge=0, le=65535)]

_MIN_CAPTURE_BYTES = 2**20  # for each worker: a photograph has room


class ServerSettings(Strict):
    """The server's options. Names end with the unit: seconds, bytes, pixels, images."""

    repository: RepositoryLocation = Field(
        default=DEFAULT_REPOSITORY,
        description="directory of published models, <model>/<version>/, or its URL in an object store, such "
        "as s3://bucket/models",
    )
    repository_cache: Path = Field(
        default=DEFAULT_CACHE,
        description="directory for the copy of a --repository that is a URL: it is served while the store "
        "does not answer",
    )
    repository_cache_versions: int = Field(
        default=KEPT_VERSIONS,
        ge=1,
        le=1000,
        description="newest versions of each model in that copy, beside those that aliases name",
    )
    store_interval_s: float = Field(
        default=10.0, gt=0, le=86_400, description="seconds between two looks at a --repository that is a URL"
    )
    host: str = Field(
        default="127.0.0.1",
        description="address to listen on; in a container use 0.0.0.0, or :: for IPv4 and IPv6",
    )
    http_host: str | None = Field(
        default=None, description="address of --http-port, if it is to be another one; default: --host"
    )
    grpc_port: Port = Field(default=8001, description="port of gRPC; 0 takes a free port and logs it")
    http_port: Port = Field(
        default=8002, description="port of /metrics, /livez and /readyz; 0 takes a free port and logs it"
    )
    workers: int = Field(
        default=1,
        ge=0,
        le=256,
        description="processes that serve the gRPC port, each with its own networks; 0: one per core",
    )

    transport: Literal["h2", "grpc"] = Field(
        default="h2", description="h2: our HTTP/2 server, for the least CPU; grpc: grpc.aio, the reference"
    )
    tls_cert_file: Path | None = Field(
        default=None, description="certificate chain (PEM); without it connections are not encrypted"
    )
    tls_key_file: Path | None = Field(
        default=None, description="private key of the certificate (PEM, without a passphrase)"
    )
    tls_client_ca_file: Path | None = Field(
        default=None,
        description="CA certificates (PEM); clients must present a certificate signed by one of them",
    )

    device: Annotated[str, matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")] = Field(
        default="auto",
        description="auto, cpu, cuda or cuda:N; auto logs its choice and why, cuda fails without a GPU",
    )
    allow_tf32: bool = Field(
        default=False,
        description="on CUDA: run FP32 networks in TF32, which is faster; golden examples must still match",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="on CUDA: launch all kernels of a batch at once where the network allows it",
    )
    device_process: bool = Field(
        default=False,
        description="load each network once, in one additional process that runs it for all workers",
    )
    engine_threads: int | None = Field(
        default=None,
        ge=0,
        le=256,
        description="ONNX Runtime threads per version; 0: one per core; default: measured at load",
    )
    precision: Literal["auto", "fp32", "int8", "fp16"] = Field(
        default="auto",
        description="network to run where a version has INT8 or FP16 variants; auto: depends on the device",
    )
    max_batch_size: int = Field(
        default=32, ge=1, le=1024, description="maximum images in one run of a network"
    )
    max_queue_delay_s: float = Field(
        default=0.0, ge=0, le=1, description="seconds an idle engine waits for a fuller batch"
    )

    max_images: int = Field(default=128, ge=1, le=4096, description="maximum images in one request")
    max_image_bytes: MaxImageBytes = DEFAULT_LIMITS.max_bytes
    max_image_pixels: MaxImagePixels = DEFAULT_LIMITS.max_pixels
    max_message_bytes: int = Field(
        default=36 * 2**20,
        ge=1024,
        le=2**31 - 1,
        description="maximum bytes of one request; larger requests are rejected unread",
    )
    max_pending_images: int = Field(
        default=1024,
        ge=1,
        description="maximum images admitted and not yet answered, per worker; more are rejected at once",
    )
    max_queue_s: float = Field(
        default=1.0,
        gt=0,
        le=3600,
        description="maximum estimated seconds that an image waits for those before it; requests that would "
        "wait longer, or beyond their deadline, are rejected at once",
    )
    max_pending_bytes: int = Field(
        default=256 * 2**20,
        ge=2**22,  # four times the window of a stream: a client that keeps to it is not refused
        description="maximum bytes of requests received and not yet answered, per worker; one connection "
        "may hold as much as is free",
    )
    max_connections: int = Field(
        default=8192,
        ge=1,
        le=2**20,
        description="maximum open connections; the newest are refused. Fewer where the limit on open files "
        "is lower",
    )
    idle_timeout_s: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="seconds without a call after which an HTTP/2 connection is closed",
    )
    max_connection_age_s: float = Field(
        default=0.0,
        ge=0,
        le=31_536_000,
        description="seconds, +-10 %, after which a connection is closed gracefully, so that clients behind "
        "a load balancer find new servers; 0: never",
    )
    max_connection_age_grace_s: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="seconds for running calls of a connection that is too old; then they are cut",
    )
    default_top_k: int = Field(default=5, ge=1, description="labels per image where the request asks for 0")
    decode_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="threads per worker that decode and resize images; 0: one per core",
    )

    poll_interval_s: float = Field(
        default=1.0,
        gt=0,
        le=3600,
        description="seconds between two scans of the repository, the token file and the TLS files",
    )
    readiness: Literal["served", "strict"] = Field(
        default="served",
        description="models that must answer for the server to be ready; served: those that have served; "
        "strict: all in the repository",
    )
    require_model: list[str] = Field(
        default=[], description="models that must answer for the server to be ready, also before they served"
    )
    hung_after_s: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="seconds after which a process whose event loop does not turn is not live, and a worker "
        "is killed and replaced",
    )
    hung_run_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="seconds after which a batch that the network has not finished makes its version broken; "
        "only a new process repairs that",
    )
    keep_warm_s: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="seconds that the version before the served one stays in memory, so that going back "
        "takes milliseconds; 0: it is unloaded at once",
    )
    lame_duck_s: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="seconds after SIGTERM in which the server is not ready but still serves, "
        "for load balancers to notice",
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, le=3600, description="seconds after the lame duck for running requests to finish"
    )
    token_file: Path | None = Field(
        default=None,
        description='TOML file: [tokens], "sha256:HEX" = ["model", ...] or ["*"]; default: no tokens needed',
    )
    model_control: bool = Field(default=False, description="let clients load and unload models by name")
    shared_memory_pattern: str | None = Field(
        default=None,
        description="regular expression for the shared memory keys that clients may register; default: none",
    )
    access_log_sample: float = Field(
        default=0.0, ge=0, le=1, description="share of calls that get a line in the log; 1: all, 0: none"
    )
    drift_window_s: float = Field(
        default=3600.0,
        gt=0,
        le=31_536_000,
        description="seconds over which the drift of answers is measured; few images take longer",
    )
    capture_dir: Path | None = Field(
        default=None,
        description="directory for a sample of the classified images and their answers; default: none",
    )
    capture_rate: float = Field(default=0.01, gt=0, le=1, description="share of the images to capture")
    capture_below_confidence: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="capture only images whose best label has a smaller probability",
    )
    capture_below_margin: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="capture only images whose two best labels have probabilities that are closer",
    )
    capture_max_bytes: int = Field(
        default=2**30,
        ge=_MIN_CAPTURE_BYTES,
        description="bytes of captured images on disk, of all workers; the oldest are removed",
    )
    capture_max_age_s: float = Field(
        default=2_592_000.0,
        gt=0,
        le=315_360_000,
        description="seconds after which captured images are removed",
    )
    log_json: bool = Field(default=False, description="log one JSON object a line instead of text")

    @field_validator("shared_memory_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"must be a regular expression, got {pattern!r}: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_images > self.max_pending_images:
            raise ValueError(
                f"--max-images {self.max_images} exceeds --max-pending-images {self.max_pending_images}: "
                "lower the first or raise the second"
            )
        if 2 * self.max_message_bytes > self.max_pending_bytes:
            raise ValueError(
                f"--max-pending-bytes {self.max_pending_bytes} is less than twice --max-message-bytes "
                f"{self.max_message_bytes}, and one connection may hold half of it: raise the first or lower "
                "the second"
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("--tls-cert-file and --tls-key-file belong together: set both")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("--tls-client-ca-file needs TLS: set --tls-cert-file and --tls-key-file too")
        self._check_capture()
        if self.workers != 1 and (self.model_control or self.shared_memory_pattern is not None):
            raise ValueError(
                f"--model-control and --shared-memory-pattern need --workers 1, got {self.workers}: "
                "a call reaches only one of the workers"
            )
        return self

    def _check_capture(self) -> None:
        options = ("capture_below_confidence", "capture_below_margin")
        given = [f"--{name.replace('_', '-')}" for name in options if getattr(self, name) is not None]
        if self.capture_dir is None:
            if given:
                raise ValueError(f"{given[0]} needs --capture-dir: set it too")
        elif self.capture_max_bytes < self.processes * _MIN_CAPTURE_BYTES:
            raise ValueError(
                f"--capture-max-bytes {self.capture_max_bytes} is less than {_MIN_CAPTURE_BYTES} for each of "
                f"{self.processes} workers: raise it"
            )
        elif self.capture_dir.resolve().is_relative_to(self.repository_folder.resolve()):
            raise ValueError(
                f"--capture-dir {self.capture_dir} is inside the repository {self.repository}, where its "
                "directories look like models: set a directory beside it"
            )

    @property
    def repository_folder(self) -> Path:
        """The directory that is served: the repository, or the copy of one behind a URL.

        Raises:
            UsageError: there is no place for the copy.
        """
        if is_url(self.repository):
            return copy_folder(self.repository, self.repository_cache) / COPY
        return Path(self.repository)

    @property
    def image_limits(self) -> ImageLimits:
        """Limits on the bytes and pixels of one image."""
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)

    @property
    def http_address(self) -> str:
        """Address of the port of metrics and probes."""
        return self.host if self.http_host is None else self.http_host

    @property
    def cores(self) -> int:
        """Cores per serving process, at least 1."""
        return max(1, available_cores() // self.processes)

    @property
    def one_engine_thread(self) -> bool:
        """Whether networks run in one thread each, on a CPU."""
        return self.engine_threads == 1 or (self.engine_threads is None and self.cores == 1)

    @property
    def decoders(self) -> int:
        """Decoding threads per serving process."""
        return self.decode_threads or self.cores

    @property
    def processes(self) -> int:
        """Number of serving processes."""
        return self.workers or available_cores()

    @property
    def supervised(self) -> bool:
        """Whether a supervisor starts several processes."""
        return self.processes > 1 or self.device_process

    def of_worker(self, grpc_port: int) -> Self:
        """Return the settings of one worker: the shared port, and a share of the cores."""
        return self.model_copy(
            update={
                "workers": self.processes,
                "grpc_port": grpc_port,
                "decode_threads": self.decoders,
                "engine_threads": self.cores if self.engine_threads == 0 else self.engine_threads,
            }
        )
