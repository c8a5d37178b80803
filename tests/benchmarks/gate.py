"""`make bench-refresh`: how often the gate is right, on simulated pairs of networks of known accuracy.

    python -m tests.benchmarks.gate [--pairs 2000] [--images 1000] [--write docs/refresh.md]

Each image is right for both, for one alone, or for neither, with given probabilities, so that the true
difference of the accuracies is known. The judge sees the outcomes alone, with the recipe's defaults. Seeded.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.champion.judge import Answers, Compared, Verdict, judge
from training.recipe import ChampionRecipe

LABELS = tuple("0123456789")
DIFFERENCES = (-0.04, -0.02, 0.0, 0.02, 0.04)
DISAGREEMENTS = (0.04, 0.08, 0.16)  # share of images that one of the two alone gets right
LABEL_LOSSES = (0.1, 0.2, 0.3)
_BOTH_RIGHT = 0.8


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdicts on many pairs of one kind, as shares."""

    difference: float  # true accuracy of the challenger minus that of the champion
    disagreement: float
    promote: float
    candidate: float
    refuse: float
    label_loss: float = 0.0  # share of the images of one label that the challenger gets wrong on top of this


def simulate(
    difference: float, disagreement: float, *, pairs: int, images: int, seed: int = 0, label_loss: float = 0.0
) -> Outcome:
    """Judge pairs whose true difference is known.

    Args:
        difference: true accuracy of the challenger minus that of the champion.
        disagreement: share of images that one of the two alone gets right, at least the difference.
        pairs: how many.
        images: test images of each pair, in ten labels.
        seed: of the random numbers.
        label_loss: share of the images of one label that the challenger gets wrong on top of this.
    """
    random = np.random.default_rng(seed)
    gained = (disagreement + difference) / 2
    bounds = np.cumsum([gained, disagreement - gained, _BOTH_RIGHT])
    verdicts: Counter[Verdict] = Counter()
    for _ in range(pairs):
        kind = np.searchsorted(
            bounds, random.random(images)
        )  # 0: challenger alone, 1: champion alone, 2: both
        truth = np.arange(images, dtype=np.int64) % len(LABELS)
        lost = (truth == 0) & (random.random(images) < label_loss)
        compared = Compared(
            challenger=Answers(((kind == 0) | (kind == 2)) & ~lost, ece=0.0),
            champion=Answers((kind == 1) | (kind == 2), ece=0.0),
            truth=truth,
            labels=LABELS,
        )
        verdicts[judge(compared, ChampionRecipe())[0]] += 1
    shares = {verdict: count / pairs for verdict, count in verdicts.items()}
    return Outcome(
        difference,
        disagreement,
        shares.get("promote", 0.0),
        shares.get("candidate", 0.0),
        shares.get("refuse", 0.0),
        label_loss,
    )


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    lines = [
        "| true difference | images that one alone gets right | promote | candidate | refuse |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {_kind(each)} | {each.disagreement:.0%} | {each.promote:.1%} | "
        f"{each.candidate:.1%} | {each.refuse:.1%} |"
        for each in outcomes
    ]
    return "\n".join(lines) + "\n"


def _kind(outcome: Outcome) -> str:
    if outcome.label_loss:
        return f"equal, but one label has lost {outcome.label_loss:.0%} of its images"
    return f"{100 * outcome.difference:+.0f} points"


def failures(outcomes: list[Outcome]) -> Iterator[str]:
    """Say what misses its target: 2 points worse is promoted, and equal is refused, in at most 5 %."""
    for each in outcomes:
        if each.difference <= -0.02 and each.promote > 0.05:
            yield f"{each.difference:+.0%} is promoted in {each.promote:.1%}, maximum 5%"
        if each.difference == each.label_loss == 0 and each.refuse > 0.05:
            yield f"equal is refused in {each.refuse:.1%}, maximum 5%"


def main() -> int:
    """Simulate, print the table, and write it between the marks of a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    outcomes = [
        simulate(difference, disagreement, pairs=options.pairs, images=options.images)
        for difference in DIFFERENCES
        for disagreement in DISAGREEMENTS
        if disagreement >= abs(difference)
    ]
    outcomes += [
        simulate(0.0, DISAGREEMENTS[1], pairs=options.pairs, images=options.images, label_loss=loss)
        for loss in LABEL_LOSSES
    ]
    print(table(outcomes), end="")
    missed = list(failures(outcomes))
    print("\n".join(missed) or "every target is met")
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        marks = r"(<!-- gate -->\n)(.*?)(<!-- end of gate -->)"
        written = re.sub(marks, lambda found: found[1] + table(outcomes) + found[3], page, flags=re.DOTALL)
        options.write.write_text(written, encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
