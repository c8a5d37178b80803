"""`lenserve`: serve, classify, models ..., tokens hash, bench. Reads options and prints results."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from serving.bench.cli import Bench
from serving.bundle import Bundle, Repository
from serving.commandline import (
    DONE,
    FAILED,
    Command,
    Commands,
    print_line,
    print_table,
    require_server,
    run_commands,
    stderr,
)
from serving.errors import BundleError, UsageError
from serving.model_commands import Alias, History, Promote, Prune, Remove, Rollback, Show
from serving.settings import ServerSettings

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
)

_BAR_WIDTH = 20


class Serve(Command, ServerSettings):  # type: ignore[misc]  # two kinds of model_config: the first wins
    """Serve a repository of models over gRPC until SIGTERM."""

    example: ClassVar[str] = "lenserve serve --repository repository"

    def run(self) -> int:
        """Serve, and stop gracefully."""
        require_server()
        import uvloop

        from serving.logs import configure_logs

        configure_logs(as_json=self.log_json)
        settings = ServerSettings(**{name: getattr(self, name) for name in ServerSettings.model_fields})
        if settings.supervised:
            from serving.processes.supervisor import supervise

            uvloop.run(supervise(settings))
        else:
            from serving.processes.memory_tuning import settle_memory
            from serving.processes.single_process import serve

            settle_memory()
            uvloop.run(serve(settings))
        return DONE


class Classify(Command):
    """Classify image files, or all images below directories, with a running server."""

    example: ClassVar[str] = "lenserve classify --model digits --top-k 3 photo.png photos/"

    images: CliPositionalArg[list[Path]] = Field(
        description="image files, or directories to search for images", min_length=1
    )
    model: str = Field(description="MODEL, MODEL@VERSION or MODEL@ALIAS")
    server: str = Field(default="127.0.0.1:8001", description="HOST:PORT of the server's gRPC port")
    top_k: int = Field(default=0, ge=0, description="labels per image; 0: the server's default")
    token: str | None = Field(
        default=None, description="bearer token; set LENSERVE_TOKEN instead to keep it out of process lists"
    )
    timeout_s: float = Field(default=30.0, gt=0, description="seconds per request, including retries")
    tls_ca_file: Path | None = Field(
        default=None, description="CA certificates (PEM) to verify the server; turns TLS on"
    )
    tls_cert_file: Path | None = Field(
        default=None, description="client certificate chain (PEM), for servers that require one"
    )
    tls_key_file: Path | None = Field(
        default=None, description="private key of the certificate (PEM, without a passphrase)"
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
        ) as client:
            results = client.classify_all(files, model=self.model, top_k=self.top_k)
            for file, result in zip(_with_progress(files), results, strict=True):
                failed += not isinstance(result, Prediction)
                print_line(json.dumps(_as_json(file, result)) if self.json_lines else _as_text(file, result))
        if failed:
            stderr.print(f"{failed} of {len(files)} images could not be classified")
        return FAILED if failed else DONE


class ListModels(Command):
    """List the versions of a repository, and verify their digests."""

    example: ClassVar[str] = "lenserve models list --repository repository"

    repository: Path = Field(description="directory of published models")
    as_json: bool = Field(default=False, alias="json", description="print one JSON object")

    def run(self) -> int:
        """List; return 1 if the files of a version do not match their digests."""
        if not self.repository.is_dir():
            raise UsageError(f"the repository {self.repository} is not a directory: set another --repository")
        rows = list(_rows(Repository(self.repository)))
        if self.as_json:
            print_line(json.dumps({"models": rows}))
        else:
            _print_rows(rows, self.repository)
            _print_overlooked(Repository(self.repository))
        return FAILED if any("error" in row for row in rows) else DONE


class HashToken(Command):
    """Print a line of a token file for the token on stdin: its hash, and the models that it allows."""

    example: ClassVar[str] = "lenserve tokens hash --model lenet5-digits"

    model: list[str] = Field(default=["*"], description="models that the token allows; *: all of them")

    def run(self) -> int:
        """Hash the first line of stdin."""
        require_server()
        from serving.rpc.bearer_tokens import hash_token

        token = sys.stdin.readline().strip()
        if not token:
            raise UsageError("stdin has no token: write it there, so that it is in no list of processes")
        print_line(f'"{hash_token(token)}" = {json.dumps(self.model)}')
        return DONE


COMMANDS: Commands = {
    "serve": Serve,
    "classify": Classify,
    "models": {
        "list": ListModels,
        "show": Show,
        "promote": Promote,
        "rollback": Rollback,
        "alias": Alias,
        "history": History,
        "prune": Prune,
        "remove": Remove,
    },
    "tokens": {"hash": HashToken},
    "bench": Bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `lenserve`; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_commands(
        "lenserve", "Serve image classifiers over gRPC, and send images to them.", COMMANDS, arguments
    )


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
    lines = [
        f"  {label.label:<{width}}  {label.probability:7.2%}  {'█' * round(label.probability * _BAR_WIDTH)}"
        for label in result.labels
    ]
    return "\n".join([f"{file}  ({result.model} version {result.version})", *lines])


def _rows(repository: Repository) -> Iterator[dict[str, object]]:
    for model in repository.models():
        nameless: dict[str, object] = {"model": model, "version": None, "aliases": []}
        aliases: Mapping[str, int] = {}
        versions: list[int] = []
        try:
            versions = repository.versions(model)
            aliases = repository.aliases(model)
        except (OSError, BundleError) as error:
            yield nameless | {"error": str(error)}
        for version in reversed(versions):
            named = sorted(alias for alias, target in aliases.items() if target == version)
            row: dict[str, object] = {"model": model, "version": version, "aliases": named}
            try:
                yield row | _description(repository.read(model, version))
            except BundleError as error:
                yield row | {"error": str(error)}


def _description(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "labels": len(manifest.labels),
        "accuracy": manifest.evaluation and manifest.evaluation.accuracy.value,
        "test_images": manifest.evaluation.images if manifest.evaluation else 0,
        "recipe": manifest.provenance.recipe,
        "created_at": manifest.provenance.created_at.isoformat(timespec="seconds"),
        "digest": bundle.digest,
    }


def _print_overlooked(repository: Repository) -> None:
    for model in (None, *repository.model_folders()):
        with suppress(OSError):  # its row says so
            for line in repository.overlooked(model):
                stderr.print(f"overlooked: {line}", markup=False, highlight=False, soft_wrap=True)


def _print_rows(rows: Sequence[dict[str, object]], repository: Path) -> None:
    if not rows:
        stderr.print(f"{repository} has no models yet: it holds no <model>/<version> directories")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("model", "version", "aliases", "classes", "accuracy", "recipe", "created", "digest"):
        table.add_column(column, overflow="fold")
    for row in rows:
        aliases = ", ".join(map(str, row["aliases"]))  # type: ignore[call-overload]
        head = (escape(str(row["model"])), str(row["version"] or ""), escape(aliases))
        if "error" in row:
            table.add_row(*head, "", f"[red]cannot be trusted: {escape(str(row['error']))}[/red]")
            continue
        measured = row["accuracy"] is not None
        accuracy = f"{row['accuracy']:.2%} of {row['test_images']}" if measured else "not measured"
        table.add_row(
            *head,
            str(row["labels"]),
            accuracy,
            escape(str(row["recipe"])),
            str(row["created_at"]),
            str(row["digest"])[:12],
        )
    print_table(table)


if __name__ == "__main__":
    sys.exit(main())
