"""`lenserve classify`: sends image files to a running server. Reads options and prints results."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.progress import track

from serving.bundle.images import IMAGE_SUFFIXES
from serving.commandline import DONE, FAILED, Command, can_show, print_line, stderr
from serving.counted import counted
from serving.errors import LenserveError, UsageError

_BAR_WIDTH = 20
_SILENCE_S = 2.0  # of an outage, before the user hears of it
_NOTICE_INTERVAL_S = 10.0


class Classify(Command):
    """Classify image files, or all images below directories, with a running server."""

    example: ClassVar[str] = "lenserve classify --model digits --top-k 3 photo.png photos/"

    images: CliPositionalArg[list[Path]] = Field(
        description="image files, or directories to search for images", min_length=1
    )
    model: str = Field(description="MODEL, MODEL@VERSION or MODEL@ALIAS")
    server: str = Field(
        default="127.0.0.1:8001", description="HOST:PORT of the server's gRPC port; without a port: 8001"
    )
    top_k: int = Field(default=0, ge=0, le=2**31 - 1, description="labels per image; 0: the server's default")
    token: str | None = Field(
        default=None, description="bearer token; set LENSERVE_TOKEN instead to keep it out of process lists"
    )
    timeout_s: float = Field(
        default=30.0, gt=0, le=86_400, description="seconds per request, including retries"
    )
    wait: bool = Field(default=False, description="first wait until the server and the model are ready")
    wait_timeout_s: float = Field(default=60.0, gt=0, le=86_400, description="seconds for --wait")
    tls_ca_file: Path | None = Field(
        default=None, description="CA certificates (PEM) to verify the server; turns TLS on"
    )
    tls_cert_file: Path | None = Field(
        default=None, description="client certificate chain (PEM), for servers that require one"
    )
    tls_key_file: Path | None = Field(
        default=None, description="private key of the certificate (PEM, without a passphrase)"
    )
    tls_server_name: str | None = Field(
        default=None, description="name that the server's certificate must have; default: the host"
    )
    json_lines: bool = Field(default=False, alias="json", description="print one JSON object per image")

    def run(self) -> int:
        """Classify in order, a few images per request; return 1 if any image failed."""
        from serving.client.client import Client, Prediction

        files = list(_image_files(self.images))
        failed = 0
        with Client(
            self.server,
            token=self.token,
            timeout_s=self.timeout_s,
            tls_ca_file=self.tls_ca_file,
            tls_cert_file=self.tls_cert_file,
            tls_key_file=self.tls_key_file,
            tls_server_name=self.tls_server_name,
            on_retry=RetryNotice(self.server, stderr),
        ) as client:
            if self.wait:
                client.wait_ready(self.model, timeout_s=self.wait_timeout_s)
            results = client.classify_all(files, model=self.model, top_k=self.top_k)
            for file, result in zip(_with_progress(files), results, strict=True):
                failed += not isinstance(result, Prediction)
                print_line(json.dumps(_as_json(file, result)) if self.json_lines else _as_text(file, result))
        if failed:
            stderr.print(f"{failed} of {counted(len(files), 'image')} could not be classified")
        return FAILED if failed else DONE


class RetryNotice:
    """Says on the terminal that a client waits for its server, if that takes long."""

    def __init__(self, server: str, console: Console, *, silence_s: float = _SILENCE_S) -> None:
        self._server = server
        self._console = console
        self._silence_s = silence_s
        self._began_s = self._noted_s = self._last_s = float("-inf")

    def __call__(self, failure: LenserveError, pause_s: float) -> None:
        """Note an attempt that failed, and is repeated after a pause."""
        now_s = time.monotonic()
        if now_s - self._last_s > _NOTICE_INTERVAL_S:  # another outage
            self._began_s = now_s
        self._last_s = now_s + pause_s
        if now_s - self._began_s >= self._silence_s and now_s - self._noted_s >= _NOTICE_INTERVAL_S:
            self._noted_s = now_s
            self._console.print(f"waiting for {self._server}, trying again: {failure}", markup=False)


def _image_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UsageError(f"no images in {path}: expected {', '.join(sorted(IMAGE_SUFFIXES))}")
            yield from found
        elif path.exists():
            yield path
        else:
            raise UsageError(f"{path}: no such file or directory")


def _with_progress(files: Sequence[Path]) -> Iterator[Path]:
    # If stdout is a terminal too, a progress bar would garble the results.
    shown = stderr.is_terminal and not sys.stdout.isatty()
    return iter(track(files, "classifying", console=stderr, disable=not shown))


def _as_json(file: Path, result: object) -> dict[str, object]:
    from serving.client.client import ImageFailure, Prediction

    if isinstance(result, Prediction):
        labels = [asdict(label) for label in result.labels]
        return {"image": str(file), "model": result.model, "version": result.version, "labels": labels}
    if isinstance(result, ImageFailure):
        return {"image": str(file), "error": {"code": result.code, "message": result.message}}
    raise TypeError(f"{result!r} is not a result. This is a bug.")


def _as_text(file: Path, result: object) -> str:
    from serving.client.client import ImageFailure, Prediction

    if isinstance(result, ImageFailure):
        return f"{file}\n  {result.code}: {result.message}"
    if not isinstance(result, Prediction):
        raise TypeError(f"{result!r} is not a result. This is a bug.")
    width = max(len(label.label) for label in result.labels)
    bar = "█" if can_show("█") else "#"
    lines = [
        f"  {label.label:<{width}}  {label.probability:7.2%}  {bar * round(label.probability * _BAR_WIDTH)}"
        for label in result.labels
    ]
    return "\n".join([f"{file}  ({result.model} version {result.version})", *lines])
