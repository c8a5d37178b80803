"""`lenserve`: serve, classify, models ..., tokens hash, batch, bench. Reads options and prints results."""

import gc
import signal
import sys

if sys.argv[1:2] == ["serve"]:  # before the imports, which take half a second
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it must not end a server
    gc.disable()  # imports leave hardly any garbage, and looking for it took 40 ms

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import BinaryIO, ClassVar

from pydantic import Field
from rich.markup import escape
from rich.table import Table

from serving.bundle import Bundle, Repository
from serving.bundle.urls import DEFAULT_CACHE, DEFAULT_REPOSITORY, RepositoryCache, RepositoryLocation
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
from serving.settings import ServerSettings
from serving.text_files import decode_text, encoding_of

_log = logging.getLogger(__name__)


class Serve(Command, ServerSettings):  # type: ignore[misc]  # two kinds of model_config: the first wins
    """Serve a repository of models over gRPC until SIGTERM."""

    example: ClassVar[str] = "lenserve serve --repository repository"

    check: bool = Field(
        default=False, description="load all models, say what would be served and what not, and exit"
    )
    as_json: bool = Field(default=False, alias="json", description="with --check: print one JSON object")

    def run(self) -> int:
        """Serve, and stop gracefully; or check, and return 1 unless everything would be served."""
        require_server()
        from serving.processes.hangup import ignore_hangups

        ignore_hangups()  # until there is a handler
        settings = ServerSettings(**{name: getattr(self, name) for name in ServerSettings.model_fields})
        if self.check:
            return self._check(settings)
        if self.as_json:
            raise UsageError("--json belongs to --check: add it, or set --log-json for the log")
        from serving.logs import configure_logs, flush_logs

        configure_logs(as_json=self.log_json)
        if variables := self.ignored_variables():
            reason = "Kubernetes set them for a service of this name: they are addresses, not ports"
            _log.warning("variables_ignored", extra={"variables": ", ".join(variables), "reason": reason})
        try:
            self._serve(settings)
        finally:
            flush_logs()  # before the line of an error
        return DONE

    def _serve(self, settings: ServerSettings) -> None:
        import uvloop

        from serving.mirroring import mirrored

        with mirrored(settings):
            if settings.supervised:
                from serving.processes.supervisor import supervise

                gc.enable()  # each worker settles its own memory
                uvloop.run(supervise(settings))
            else:
                from serving.processes.memory_tuning import settle_memory
                from serving.processes.single_process import serve

                settle_memory()
                uvloop.run(serve(settings))

    def _check(self, settings: ServerSettings) -> int:
        import uvloop

        from serving.check import check, show
        from serving.mirroring import mirror_once
        from serving.processes.exit import exit_soon

        gc.enable()
        logging.getLogger().addHandler(logging.NullHandler())  # the result says it
        mirror_once(settings)
        found = uvloop.run(check(settings))
        show(found, as_json=self.as_json)
        code = DONE if found.passed else FAILED
        exit_soon(code)
        return code


class ListModels(Command):
    """List the versions of a repository, and verify their digests."""

    example: ClassVar[str] = "lenserve models list --repository repository"

    repository: RepositoryLocation = Field(
        default=DEFAULT_REPOSITORY, description="directory of published models, or s3://bucket/models"
    )
    repository_cache: RepositoryCache = DEFAULT_CACHE
    as_json: bool = Field(default=False, alias="json", description="print one JSON object")

    def run(self) -> int:
        """List; return 1 if the files of a version do not match their digests."""
        from serving.bundle.stored_repository import open_repository

        repository = open_repository(self.repository, self.repository_cache)
        rows = list(_rows(repository))
        if self.as_json:
            print_line(json.dumps({"models": rows}))
        else:
            _print_rows(rows, self.repository)
            _print_overlooked(repository)
        return FAILED if any("error" in row for row in rows) else DONE


class HashToken(Command):
    """Print a line of a token file for the token on stdin: its hash, and the models that it allows."""

    example: ClassVar[str] = "lenserve tokens hash --model lenet5-digits"

    model: list[str] = Field(default=["*"], description="models that the token allows; *: all of them")

    def run(self) -> int:
        """Hash the first line of stdin."""
        require_server()
        from serving.rpc.bearer_tokens import hash_token

        token = _first_line(sys.stdin.buffer)
        if not token:
            raise UsageError("stdin has no token: write it there, so that it is in no list of processes")
        print_line(f'"{hash_token(token)}" = {json.dumps(self.model)}')
        return DONE


# The others are named, not imported: that would take a tenth of a server's start.
COMMANDS: Commands = {
    "serve": Serve,
    "classify": "serving.cli_classify:Classify",
    "models": {
        "list": ListModels,
        "import": "serving.importing.cli:ImportModel",
        "show": "serving.show_command:Show",
        "promote": "serving.model_commands:Promote",
        "rollback": "serving.model_commands:Rollback",
        "alias": "serving.model_commands:Alias",
        "history": "serving.model_commands:History",
        "prune": "serving.model_commands:Prune",
        "remove": "serving.model_commands:Remove",
        "export-config": "serving.triton.cli:ExportConfig",
    },
    "tokens": {"hash": HashToken},
    "batch": "serving.batch_job.cli:Batch",
    "bench": "serving.bench.cli:Bench",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `lenserve`; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_commands(
        "lenserve", "Serve image classifiers over gRPC, and send images to them.", COMMANDS, arguments
    )


def _first_line(file: BinaryIO) -> str:
    """Read a line, as an editor, a shell or a terminal has written it."""
    line = file.readline()
    if encoding_of(line) == "utf-16":  # its line ends have two bytes
        line += file.read()
    try:
        return decode_text(line).partition("\n")[0].strip()
    except UnicodeDecodeError as error:
        raise UsageError("stdin is not text in UTF-8: write only the token there") from error


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
                yield row | _description(repository.look_up(model, version))
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


def _print_rows(rows: Sequence[dict[str, object]], repository: str) -> None:
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
