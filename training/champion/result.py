"""The outcome of a comparison with the champion, as metrics.json keeps it."""

from pydantic import Field

from serving.bundle.manifest import Fraction, Gate, Strict
from training.champion.judge import ChampionCheck, Verdict

CHAMPION_RUNS = "the champion runs on this machine"  # name of a check, which old runs have recorded too


class Challenge(Strict):
    """A new version against the one that it would replace."""

    verdict: Verdict = Field(description="promote: it becomes the default; candidate: it is only published")
    champion: int | None = Field(description="version that it was compared with; null: it is the first one")
    stable: int | None = Field(
        default=None,
        ge=0,
        description="version that the alias `stable` named then; 0: there was no such alias; null: an older "
        "run did not record it",
    )
    images: int = Field(default=0, description="compared images: distinct test images new to the champion")
    left_out: int = Field(default=0, description="test images that the champion was trained on")
    repeated: int = Field(default=0, description="test images equal to another compared one; left out too")
    accuracy: Fraction | None = Field(default=None, description="of the new version on the compared images")
    champion_accuracy: Fraction | None = Field(default=None, description="of the champion on the same images")
    checks: tuple[ChampionCheck, ...] = ()
    forced: bool = Field(default=False, description="whether `--force` promoted it whatever the verdict")

    @property
    def decision(self) -> Verdict:
        """What is done: the verdict, unless it was forced."""
        return "promote" if self.forced else self.verdict

    @property
    def champion_runs(self) -> bool:
        """Whether the champion could be loaded and run, as far as that was tried."""
        return all(check.passed for check in self.checks if check.name == CHAMPION_RUNS)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against it, in one line each."""
        return tuple(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)

    def for_manifest(self) -> Gate:
        """Return the part that is published."""
        return Gate(verdict=self.verdict, champion=self.champion, reasons=self.reasons, forced=self.forced)

    def summary(self, model: str) -> str:
        """Return one line for people."""
        if self.champion is None:
            return f"{model} has no version yet: the first one meets the limits of its recipe alone"
        against = f"against version {self.champion}, the champion"
        words = {
            "promote": f"{against}: not worse, so it is promoted",
            "candidate": f"{against}: a candidate, published but not served by default",
            "refuse": f"{against}: refused",
        }
        return words[self.verdict] + (
            f" (--force promotes it all the same; to go back: lenserve models rollback {model})"
            if self.forced
            else ""
        )
