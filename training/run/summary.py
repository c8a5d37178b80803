"""How a run ended, for machines. Knows no torch, so that the command line can speak of it at once."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from serving.bundle.manifest import Strict


class RunSummary(Strict):
    """How a run ended."""

    model: str
    version: int | None = Field(description="none where it was refused")
    path: str | None = Field(description="of the published version")
    verdict: Literal["published", "refused"]
    metrics: Mapping[str, int | float]
    seconds: float = Field(description="of this process; a resumed run's earlier ones are not in it")
    refusal: str | None = Field(default=None, description="every failed check with its numbers")
