"""`lenserve serve --check`: loads what a server would serve, and says what not, and why. Opens no port."""

import asyncio
import json
from dataclasses import asdict, dataclass
from functools import partial

from rich.markup import escape
from rich.table import Table

from serving.bundle import Repository
from serving.commandline import print_line, print_table, stderr
from serving.counted import counted
from serving.engine.devices import find_device
from serving.errors import UsageError
from serving.metrics.recorder import Metrics
from serving.models.folder_threads import FolderThreads
from serving.models.registry import STUCK_S, Models
from serving.models.versions import VersionStatus
from serving.server import check_files, open_models
from serving.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """What a server would do with one model."""

    name: str
    ready: bool
    problem: str  # why it cannot answer, or why another version is served than its files say
    versions: tuple[VersionStatus, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """What a server would do with its repository."""

    why_not_ready: str
    models: tuple[CheckedModel, ...]
    overlooked: tuple[str, ...]  # folders that look like models or versions but are not taken as such

    @property
    def passed(self) -> bool:
        """Whether the server would be ready, and serve what the files of every model say."""
        states = (status.reason for model in self.models for status in model.versions)
        return not (self.why_not_ready or any(model.problem for model in self.models) or any(states))


async def check(settings: ServerSettings, *, stuck_s: float = STUCK_S) -> Check:
    """Load, warm up and prove all versions that a server with these settings would serve.

    Args:
        settings: of the server.
        stuck_s: seconds after which folders are not waited for that hang.

    Raises:
        UsageError: the repository, the token file or a TLS file is missing or invalid.
        DeviceUnavailable: CUDA was requested but is not available.
    """
    check_files(settings)
    device = find_device(settings.device, allow_tf32=settings.allow_tf32, cuda_graphs=settings.cuda_graphs)
    async with open_models(settings, device, Metrics(), stuck_s=stuck_s) as models:
        await models.scanned()
        if models.unreadable:
            raise UsageError(f"the repository {settings.repository} cannot be read: {models.unreadable}")
        overlooked = await _overlooked(Repository(settings.repository_folder), stuck_s)
        return Check(models.why_not_ready, _checked(models), tuple(overlooked))


def show(found: Check, *, as_json: bool) -> None:
    """Print the result on stdout, and overlooked folders on stderr."""
    if as_json:
        print_line(json.dumps({"passed": found.passed, **asdict(found)}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("model", "version", "aliases", "state"):
        table.add_column(column, overflow="fold")
    for model in found.models:
        for status in model.versions:
            aliases = escape(", ".join(status.aliases))
            table.add_row(escape(model.name), str(status.version), aliases, _state(status))
        if model.problem:
            table.add_row(escape(model.name), "", "", f"[red]{escape(model.problem)}[/red]")
    if found.models:
        print_table(table)
    for line in found.overlooked:
        stderr.print(f"overlooked: {line}", markup=False)
    verdict = f"not ready: {found.why_not_ready}" if found.why_not_ready else _verdict(found)
    stderr.print(verdict, markup=False)


def _verdict(found: Check) -> str:
    serves = [model.name for model in found.models if model.ready]
    if not serves:
        return "ready, but the repository has no models yet: it holds no <model>/<version> directories"
    rest = "" if found.passed else ", but not all that the repository says"
    return f"ready: would serve {len(serves)} of {counted(len(found.models), 'model')}{rest}"


def _state(status: VersionStatus) -> str:
    if status.reason:
        return f"[red]{status.state}: {escape(status.reason)}[/red]"
    return "served, default" if status.is_default else "served"


def _checked(models: Models) -> tuple[CheckedModel, ...]:
    statuses = models.statuses()
    return tuple(
        CheckedModel(
            name,
            (model := models.get(name)).ready,
            model.problem,
            tuple(each for each in statuses if each.model == name),
        )
        for name in sorted({*models.names(), *(each.model for each in statuses)})
    )


async def _overlooked(repository: Repository, limit_s: float) -> list[str]:
    """Look into all folders; those that hang, or cannot be read, have a problem that says so."""
    threads = FolderThreads()
    names = (None, *await threads.run(repository.model_folders))
    looks = [threads.start(partial(repository.overlooked, name)) for name in names]
    done, _ = await asyncio.wait(looks, timeout=limit_s)
    found = [line for look in looks if look in done and not look.exception() for line in look.result()]
    await threads.close()
    return found
