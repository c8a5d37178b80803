"""The learning rate, a pure function of the step."""

import pytest

from training.learning.schedule import learning_rate
from training.recipe import TrainingRecipe


def rates(steps: int = 100, **settings: object) -> list[float]:
    """The rate of every step of a run of ten epochs."""
    recipe = TrainingRecipe.model_validate({"epochs": 10, "learning_rate": 0.5, **settings})
    return [learning_rate(step, steps, recipe) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_rates_begin_at_the_highest_and_never_rise(schedule: str) -> None:
    """Schedules begin at the recipe's rate and never rise; all but the constant one end near zero."""
    found = rates(schedule=schedule)
    assert found[0] == 0.5
    assert found == sorted(found, reverse=True)
    assert found[-1] == (0.5 if schedule == "constant" else pytest.approx(0, abs=6e-3))


def test_one_cycle_rises_for_three_tenths_and_falls_to_nothing() -> None:
    """From 1/25 of the rate to the rate, then to 1/10,000."""
    found = rates(schedule="one-cycle")
    assert found[0] == pytest.approx(0.5 / 25)
    assert max(found) == found[30] == pytest.approx(0.5)
    assert found[:31] == sorted(found[:31])
    assert found[30:] == sorted(found[30:], reverse=True)
    assert found[-1] < 1e-3


def test_steps_fall_after_whole_epochs() -> None:
    """The rate falls to a tenth after every fourth epoch of ten steps."""
    found = rates(schedule="step", step_epochs=4)
    assert set(found[:40]) == {0.5}
    assert found[40:80] == pytest.approx([0.05] * 40)
    assert found[80:] == pytest.approx([0.005] * 20)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_evenly_before_any_schedule(schedule: str) -> None:
    """Over two epochs of ten steps the rate rises to what the schedule alone would give."""
    warm, plain = rates(schedule=schedule, warmup_epochs=2), rates(schedule=schedule)
    assert warm[0] == pytest.approx(plain[0] / 21)
    assert warm[9] == pytest.approx(plain[9] * 10 / 21)
    assert warm[20:] == plain[20:]
