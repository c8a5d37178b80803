"""Curves of training: loss, accuracy and learning rate by epoch; accuracy by number of examples."""

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from training.few_shot.curve import CurvePoint
from training.learning.history import EpochRecord
from training.report.blocks import Picture, Row, Table
from training.report.charts import BLUE, GREEN, PALE, SOFT, chart, charts, legend, png, svg

_AXES = {"loss": "cross-entropy", "accuracy": "accuracy in %", "rate": "learning rate"}


def draw_history(
    history: Sequence[EpochRecord], best_epoch: int, *, validation_chose: bool | None = None
) -> Row:
    """Loss, accuracy and learning rate of training and validation; the published epoch is marked."""
    last = history[-1]
    chosen = ", which validation loss chose" if validation_chose else ""
    marked = f"The dotted line is the published epoch, {best_epoch}{chosen}."
    note = (
        " The training accuracy is that of augmented images, while the weights still change."
        if last.train_accuracy is not None
        else ""
    )
    return Row(
        (
            _draw(
                history,
                best_epoch,
                "loss",
                title="Loss",
                alt=f"Loss by epoch; at the end {last.train_loss:.3f} in training and "
                f"{last.validation_loss:.3f} in validation.",
                caption=marked,
            ),
            _draw(
                history,
                best_epoch,
                "accuracy",
                title="Accuracy",
                alt=f"Accuracy by epoch; in validation {100 * last.validation_accuracy:.2f} % at the end.",
                caption=f"{marked}{note}",
            ),
            _draw(
                history,
                best_epoch,
                "rate",
                title="Learning rate",
                alt=f"Learning rate by epoch, at the end {last.learning_rate:.2g}.",
                caption="At the last step of each epoch.",
            ),
        )
    )


def draw_curves(history: Sequence[EpochRecord], best_epoch: int) -> bytes:
    """Loss, accuracy and learning rate side by side, as one PNG."""
    figure, panels = charts(3)
    for axes, (key, ylabel) in zip(panels, _AXES.items(), strict=True):
        _plot(axes, history, best_epoch, _series(history, key), ylabel)
    return png(figure)


def draw_few_shot(points: Sequence[CurvePoint]) -> tuple[Picture, Table]:
    """Mean accuracy by number of examples, with its 95 % interval and the range of the random subsets."""
    figure, axes = chart()
    places = range(len(points))
    worst, best = [100 * point.worst for point in points], [100 * point.best for point in points]
    axes.fill_between(places, worst, best, color=PALE, alpha=0.35, label="worst to best subset")
    below = [100 * (point.mean - point.low) for point in points]
    above = [100 * (point.high - point.mean) for point in points]
    means = [100 * point.mean for point in points]
    axes.errorbar(places, means, (below, above), color=BLUE, marker="o", capsize=4, label="mean, 95 %")
    axes.set_xticks(places, [point.examples() for point in points])
    axes.set(xlabel="training images per label", ylabel="accuracy in %")
    legend(axes, "lower right")
    picture = Picture(
        "few-shot",
        f"Test accuracy by number of training images per label, from {means[0]:.1f} % with "
        f"{points[0].examples()} to {means[-1]:.1f} % with {points[-1].examples()}.",
        svg(figure, "few-shot"),
        "svg",
        title="Few-shot accuracy",
    )
    table = Table(
        "Accuracy by number of examples",
        ("images per label", "accuracy", "95 % interval", "subsets", "worst to best"),
        tuple(
            (
                point.examples(),
                f"{point.mean:.1%}",
                f"{point.low:.1%} to {point.high:.1%}",
                f"{point.draws}",
                f"{point.worst:.1%} to {point.best:.1%}",
            )
            for point in points
        ),
    )
    return picture, table


def _draw(
    history: Sequence[EpochRecord],
    best_epoch: int,
    key: Literal["loss", "accuracy", "rate"],
    *,
    title: str,
    alt: str,
    caption: str,
) -> Picture:
    figure, axes = chart()
    _plot(axes, history, best_epoch, _series(history, key), _AXES[key])
    name = f"history-{key}"
    return Picture(name, alt, svg(figure, name), "svg", caption=caption, title=title)


def _series(history: Sequence[EpochRecord], key: str) -> dict[str, list[float]]:
    """Name -> one value per epoch."""
    if key == "rate":
        return {"learning rate": [record.learning_rate for record in history]}
    if key == "loss":
        return {
            "training": [record.train_loss for record in history],
            "validation": [record.validation_loss for record in history],
        }
    measured = [100 * record.train_accuracy for record in history if record.train_accuracy is not None]
    return {
        "training": measured if len(measured) == len(history) else [],
        "validation": [100 * record.validation_accuracy for record in history],
    }


def _plot(
    axes: Axes,
    history: Sequence[EpochRecord],
    best_epoch: int,
    series: dict[str, list[float]],
    ylabel: str,
) -> None:
    epochs = [record.epoch for record in history]
    drawn = {label: values for label, values in series.items() if values}
    for label, values in drawn.items():
        colour = PALE if label == "training" else BLUE
        axes.plot(
            epochs, values, color=colour, label=label, marker="o" if len(epochs) == 1 else "", linewidth=1.8
        )
    _mark_head_only(axes, history)
    axes.axvline(best_epoch, color=GREEN, linestyle=":", linewidth=1.2)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if ylabel == _AXES["loss"] and min(min(values) for values in drawn.values()) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(drawn) > 1:
        legend(axes)


def _mark_head_only(axes: Axes, history: Sequence[EpochRecord]) -> None:
    of_head = sum(record.head_only for record in history)
    if 0 < of_head < len(history):
        axes.axvspan(0.5, of_head + 0.5, color=PALE, alpha=0.2, linewidth=0)
        axes.text(0.6, 1.0, "head only", color=SOFT, fontsize=8, transform=axes.get_xaxis_transform())
