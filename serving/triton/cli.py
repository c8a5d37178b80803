"""The command `lenserve models export-config`: options and output."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from serving.bundle import Repository
from serving.bundle.urls import DEFAULT_REPOSITORY, RepositoryFolder
from serving.commandline import DONE, Command, print_line
from serving.errors import UsageError


class ExportConfig(Command):
    """Write config.pbtxt and labels.txt, so that Triton opens the same repository."""

    example: ClassVar[str] = "lenserve models export-config --repository repository"

    repository: RepositoryFolder = Field(
        default=Path(DEFAULT_REPOSITORY), description="directory of published models"
    )
    model: list[str] = Field(default=[], description="models to write the files of; default: all")
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=32, description="images that Triton runs at once"
    )

    def run(self) -> int:
        """Write the files of each model, for the version that `stable` names, or else the newest."""
        if not self.repository.is_dir():
            raise UsageError(f"the repository {self.repository} is not a directory: set another --repository")
        from serving.triton.export_config import CONFIG_FILE, LABELS_FILE, export_config, served_version

        repository = Repository(self.repository)
        names = self.model or repository.models()
        if not names:
            raise UsageError(f"{self.repository} has no models yet: name a directory of published models")
        for bundle in [served_version(repository, name) for name in names]:
            folder = export_config(bundle, max_batch_size=self.max_batch_size)
            print_line(f"wrote {folder / CONFIG_FILE} and {LABELS_FILE} for version {bundle.version}")
        return DONE
