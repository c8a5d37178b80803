"""Publishes a run once, though the process may die between publishing and writing the run's summary.

Before it publishes, a run writes down where, and the digest of its metrics.json. That file has the time of
the run to a microsecond and is part of the version, so a later process finds the version that was published.
"""

import hashlib
from pathlib import Path

from pydantic import Field, ValidationError

from serving.bundle import Repository
from serving.bundle.manifest import Sha256, Strict
from serving.errors import BundleError, UnknownModel
from training.atomic_files import replace_file
from training.report.metrics import METRICS_FILE, Metrics
from training.run.run_folder import RunFolder
from training.run.summary import RunSummary


class PublishIntent(Strict):
    """publishing.json: what a run is about to publish."""

    repository: Path = Field(description="absolute")
    model: str
    metrics_sha256: Sha256 = Field(description="of the report's metrics.json")
    seconds: float = Field(description="of the process, until then")


def write_intent(folder: RunFolder, repository: Repository, model: str, seconds: float) -> None:
    """Record what is published next; the report of the run is written."""
    intent = PublishIntent(
        repository=repository.root.resolve(),
        model=model,
        metrics_sha256=hashlib.sha256((folder.report / METRICS_FILE).read_bytes()).hexdigest(),
        seconds=seconds,
    )
    replace_file(folder.intent, intent.model_dump_json(indent=2).encode() + b"\n")


def find_published(folder: RunFolder, repository: Repository) -> RunSummary | None:
    """Find the version that an earlier process of this run published before it died.

    Args:
        folder: of the run.
        repository: of this process, searched too: the other one may have been moved.

    Returns: the summary that the earlier process did not write; None if it published nothing.
    """
    try:
        intent = PublishIntent.model_validate_json(folder.intent.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # written before anything is published
    is_same = intent.repository == repository.root.resolve()
    searched = (repository,) if is_same else (Repository(intent.repository), repository)
    return next((found for each in searched if (found := _find(each, intent)) is not None), None)


def _find(repository: Repository, intent: PublishIntent) -> RunSummary | None:
    name = f"report/{METRICS_FILE}"
    for version in reversed(repository.versions(intent.model)):
        try:
            bundle = repository.read_manifest(intent.model, version)
            if (
                name not in bundle.manifest.files
                or bundle.manifest.files[name].sha256 != intent.metrics_sha256
            ):
                continue
            bundle = repository.read(intent.model, version)
        except (BundleError, UnknownModel):
            continue  # damaged, or deleted meanwhile
        else:
            metrics = Metrics.model_validate_json((bundle.folder / name).read_bytes())
            return RunSummary(
                model=intent.model,
                version=version,
                path=repository.location(intent.model, version),
                verdict="published",
                gate=metrics.champion and metrics.champion.decision,
                metrics=metrics.headline(),
                seconds=intent.seconds,
            )
    return None
