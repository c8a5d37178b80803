"""The command `lenserve models export-config`: options and output."""

import json
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from serving.bundle import Repository
from serving.bundle.urls import DEFAULT_REPOSITORY, RepositoryFolder
from serving.commandline import DONE, Command, print_line
from serving.errors import BundleError, UsageError


class ExportConfig(Command):
    """Write config.pbtxt and labels.txt, so that Triton opens the same repository."""

    example: ClassVar[str] = "lenserve models export-config lenet5-digits --repository repository"

    named: CliPositionalArg[list[str]] = Field(
        default=[],
        description="MODEL, MODEL@VERSION or MODEL@ALIAS; default: every model of the repository",
    )
    repository: RepositoryFolder = Field(
        default=Path(DEFAULT_REPOSITORY), description="directory of published models"
    )
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=32, description="images that Triton runs at once"
    )
    as_json: bool = Field(default=False, alias="json", description="print one JSON object")

    def run(self) -> int:
        """Write the files of each model; nothing if one of the models or versions is wrong.

        Raises:
            BundleError: the repository cannot be read.
        """
        if not self.repository.is_dir():
            raise UsageError(f"the repository {self.repository} is not a directory: set another --repository")
        from serving.triton.export_config import CONFIG_FILE, LABELS_FILE, chosen_versions, export_configs

        try:
            bundles = chosen_versions(Repository(self.repository), self.named)
        except OSError as error:
            raise BundleError(
                f"the repository {self.repository} cannot be read: {error.strerror or error}; "
                "correct its permissions, then repeat the command"
            ) from error
        folders = export_configs(bundles, max_batch_size=self.max_batch_size)
        written = list(zip(bundles, folders, strict=True))
        if self.as_json:
            rows = [
                {
                    "model": bundle.model,
                    "version": bundle.version,
                    "config": str(folder / CONFIG_FILE),
                    "labels": str(folder / LABELS_FILE),
                }
                for bundle, folder in written
            ]
            print_line(json.dumps({"models": rows}))
            return DONE
        for bundle, folder in written:
            print_line(f"wrote {folder / CONFIG_FILE} and {LABELS_FILE} for version {bundle.version}")
        return DONE
