"""Every option of the server, in one frozen object that is built once and passed down."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from serving.bundle.images import PILLOW_MAX_PIXELS, ImageLimits
from serving.bundle.manifest import Strict

Port = Annotated[int, Field(ge=0, le=65535)]


class ServerSettings(Strict):
    """What an operator can choose. Units are in the names: seconds, bytes, pixels, images."""

    repository: Path = Field(description="folder of published models, <model>/<version>/")
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 in a container")
    grpc_port: Port = Field(default=8001, description="gRPC; 0 takes a free port and says which")
    http_port: Port = Field(default=8002, description="/metrics, /livez, /readyz; 0 takes a free port")
    workers: int = Field(
        default=1,
        ge=0,
        le=256,
        description="processes that serve the gRPC port, each with networks of its own; 0: one per core",
    )

    transport: Literal["h2", "grpc"] = Field(
        default="h2", description="h2: the cheapest; grpc: by grpc.aio, the reference"
    )
    tls_cert_file: Path | None = Field(default=None, description="PEM chain; gRPC is in the clear without it")
    tls_key_file: Path | None = Field(default=None, description="PEM key of the certificate, unencrypted")
    tls_client_ca_file: Path | None = Field(
        default=None, description="PEM; with it clients must show a certificate that one of these signed"
    )

    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N. auto says what it chose and why; cuda starts on nothing else",
    )
    allow_tf32: bool = Field(
        default=False,
        description="on CUDA: run FP32 networks in TF32, faster; golden examples must come out all the same",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="on CUDA: launch all kernels of a batch at once, where a network allows it",
    )
    device_process: bool = Field(
        default=False,
        description="one process more, which loads each network once and runs it for all workers",
    )
    engine_threads: int | None = Field(
        default=None,
        ge=0,
        le=256,
        description="ONNX Runtime threads per version; 0: one per core; not given: measured at load",
    )
    precision: Literal["auto", "fp32", "int8", "fp16"] = Field(
        default="auto",
        description="of versions that carry others than the exported fp32; auto: what suits the device",
    )
    max_batch_size: int = Field(default=32, ge=1, le=1024, description="images the engine is given at once")
    max_queue_delay_s: float = Field(
        default=0.0, ge=0, le=1, description="how long an idle engine waits for a fuller batch; 0: not at all"
    )

    max_images: int = Field(default=128, ge=1, le=4096, description="images in one request")
    max_image_bytes: int = Field(default=16 * 2**20, ge=1, description="length of one encoded image")
    max_image_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=PILLOW_MAX_PIXELS,
        description="width times height, checked before decoding",
    )
    max_message_bytes: int = Field(
        default=64 * 2**20,
        ge=1024,
        le=2**31 - 1,
        description="length of one request; gRPC refuses longer ones unread",
    )
    max_pending_images: int = Field(
        default=1024,
        ge=1,
        description="images admitted and not yet answered, in each worker; more are refused at once",
    )
    default_top_k: int = Field(default=5, ge=1, description="labels an image gets where the request says 0")
    decode_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="threads that decode and resize, in each worker; 0: one per core",
    )

    poll_interval_s: float = Field(
        default=1.0, gt=0, le=3600, description="how often the repository is looked at"
    )
    lame_duck_s: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="after SIGTERM: not ready but still serving, while routes are withdrawn",
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, le=3600, description="then: time for running requests to end"
    )
    token_file: Path | None = Field(
        default=None,
        description='TOML of [tokens], "token" = ["model", ...] or ["*"]; without it nobody is asked',
    )
    model_control: bool = Field(
        default=False, description="whether clients may load and unload models by their names"
    )
    shared_memory_pattern: str | None = Field(
        default=None,
        description="regular expression of keys of shared memory that clients may register; unset: none",
    )
    log_json: bool = Field(default=False, description="one JSON object a line instead of text")

    @field_validator("shared_memory_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_images > self.max_pending_images:
            raise ValueError(
                f"max_images is {self.max_images}, more than max_pending_images, {self.max_pending_images}"
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        if self.workers != 1 and (self.model_control or self.shared_memory_pattern is not None):
            raise ValueError(
                f"model_control and shared_memory_pattern need one process, not {self.workers} workers: "
                "such a call would reach only the worker that it happens to meet"
            )
        return self

    @property
    def image_limits(self) -> ImageLimits:
        """What one image may cost."""
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)

    @property
    def cores(self) -> int:
        """The share of each process that serves, at least 1."""
        return max(1, _cores() // self.processes)

    @property
    def decoders(self) -> int:
        """Number of threads that decode, in each process."""
        return self.decode_threads or self.cores

    @property
    def processes(self) -> int:
        """Number of processes that serve."""
        return self.workers or _cores()

    @property
    def supervised(self) -> bool:
        """Whether there are several processes, and one that looks after them."""
        return self.processes > 1 or self.device_process

    def of_worker(self, grpc_port: int) -> Self:
        """What each of several workers is told: the one port, and its share of the cores."""
        return self.model_copy(
            update={
                "workers": self.processes,
                "grpc_port": grpc_port,
                "decode_threads": self.decoders,
                "engine_threads": self.cores if self.engine_threads == 0 else self.engine_threads,
            }
        )


def _cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
