"""The outcome of a run, for programs. Does not import torch, so that the command line starts fast."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from serving.bundle.manifest import Strict


class RunSummary(Strict):
    """The outcome of a run; `--json` prints it without `refusal`."""

    model: str
    version: int | None = Field(description="None if a gate failed")
    path: str | None = Field(description="number of the published version")
    verdict: Literal["published", "refused"]
    gate: Literal["promote", "candidate", "refuse"] | None = Field(
        default=None,
        description="promote: the alias `stable` names it; candidate: published, not the default; None: "
        "not recorded by older versions",
    )
    metrics: Mapping[str, int | float]
    seconds: float = Field(description="duration of this process; time before a resume is not included")
    refusal: str | None = Field(default=None, description="every failed check with its value and limit")
