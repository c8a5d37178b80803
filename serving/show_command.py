"""`lenserve models show`: the models of a repository, the versions of one, or every fact of some of them."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from serving.bundle import STABLE_ALIAS, Repository
from serving.bundle.looks_like import is_version_name
from serving.bundle.operations import newest_usable, require_model, split_name, version_named
from serving.commandline import DONE, FAILED, print_line, print_table, stderr
from serving.errors import BundleError, UnknownModel, UsageError
from serving.metrics.live_answers import LiveAnswers, live_answers
from serving.repository_command import RepositoryCommand, split_version, version_of
from serving.version_tables import all_models, all_versions, facts, versions_side_by_side

if TYPE_CHECKING:
    from serving.bench.server_facts import Sample


class Show(RepositoryCommand):
    """Show all models, one model's versions, or some of them side by side: by whom, from what, how good."""

    example: ClassVar[str] = "lenserve models show lenet5-digits --repository repository"

    named: CliPositionalArg[list[str]] = Field(
        default=[],
        description="MODEL, MODEL@VERSION or MODEL@ALIAS; several versions are compared; without: all models",
    )
    metrics_url: str | None = Field(
        default=None,
        description="/metrics of a server: adds what each version answered, and its drift",
    )

    def act(self) -> int:
        """Show; return 1 if a version cannot be trusted."""
        if not self.named:
            return self._show_models()
        name, versions = self._versions()
        aliases = self.models.aliases(name)
        samples = None
        if self.metrics_url:
            from serving.bench.server_facts import read_metrics  # noqa: PLC0415 - it loads gRPC

            samples = read_metrics(self.metrics_url)
        rows = [_row(self.models, name, version, aliases, samples) for version in versions]
        if self.as_json:
            shown = {"model": name, "aliases": dict(aliases), "versions": rows}
            print_line(json.dumps(shown, default=LiveAnswers.to_json))
        elif "@" in self.named[0]:
            print_table(versions_side_by_side(rows))
        else:
            print_table(all_versions(rows))
        missing = [alias for alias, target in aliases.items() if target not in self.models.versions(name)]
        for alias in missing:
            stderr.print(
                f"! the alias {alias!r} names version {aliases[alias]}, which does not exist: point it at "
                "another one",
                markup=False,
            )
        return FAILED if missing or any("error" in row for row in rows) else DONE

    def _show_models(self) -> int:
        if self.metrics_url:
            raise UsageError("--metrics-url adds what the versions of one model answered: name the model")
        rows = [_model_row(self.models, model) for model in self.models.models()]
        if self.as_json:
            print_line(json.dumps({"models": rows}))
        elif rows:
            print_table(all_models(rows))
        else:
            root = self.models.root
            hint = "it holds no <model>/<version> directories"
            if any(is_version_name(entry.name) for entry in root.iterdir()):
                hint = f"it looks like the directory of one model: use --repository {root.absolute().parent}"
            stderr.print(f"{self.repository} has no models yet: {hint}", markup=False)
        return FAILED if any("error" in row for row in rows) else DONE

    def _versions(self) -> tuple[str, list[int]]:
        """The model, and the versions to show, in their order."""
        if meant := split_version(self.named):
            raise UsageError(f"{meant.replace('@', ' ')} names no version: use {meant}")
        if len(self.named) > 1:
            found = [version_of(self.models, each) for each in self.named]
            models = list(dict.fromkeys(model for model, _ in found))
            if len(models) > 1:
                raise UsageError(f"{' and '.join(models)} are several models: compare versions of one")
            return models[0], [version for _, version in found]
        name, revision = split_name(self.named[0])
        require_model(self.models, name)
        if revision:
            return name, [version_named(self.models, name, revision)]
        return name, self.models.versions(name)[::-1]


def _model_row(repository: Repository, model: str) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model, "served": None, "stable": None, "versions": 0, "newest": None}
    try:
        versions = repository.versions(model)
        row |= {"versions": len(versions), "newest": versions[-1] if versions else None}
        row["stable"] = row["served"] = repository.aliases(model).get(STABLE_ALIAS)
        if row["stable"] is None:
            usable = newest_usable(repository, model, to_show=True)
            row["served"] = usable.version if usable else None
        elif row["stable"] not in versions:
            why = f"its alias {STABLE_ALIAS!r} names version {row['stable']}, which does not exist"
            return row | {"error": f"{why}: promote another"}
        newest = facts(repository.look_up(model, versions[-1]))
        if row["served"] not in (None, versions[-1]):
            repository.look_up(model, row["served"])
        return row | {name: newest[name] for name in ("created_at", "verdict", "forced")}
    except (OSError, BundleError, UnknownModel) as error:
        return row | {"error": str(error)}


def _row(
    repository: Repository,
    model: str,
    version: int,
    aliases: Mapping[str, int],
    samples: "Mapping[Sample, float] | None",
) -> dict[str, Any]:
    named = sorted(alias for alias, target in aliases.items() if target == version)
    row: dict[str, Any] = {"version": version, "aliases": named}
    try:
        bundle = repository.look_up(model, version)
        answers = {} if samples is None else {"live": live_answers(samples, model, version, bundle.manifest)}
        return row | facts(bundle) | answers
    except (BundleError, UnknownModel) as error:
        return row | {"error": str(error)}
