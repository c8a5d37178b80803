"""Renders the report as one self-contained HTML page."""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from string import Template

from PIL import Image

from serving.bundle import Estimate
from training.evaluation.proof import Misclassification
from training.few_shot.curve import CurvePoint
from training.recipe.results import CHOSE_EPOCH, TUNED_ON_TEST
from training.report.metrics import Metrics

_MISTAKE_SIDE = 56  # size on the page, in pixels


def render(
    metrics: Metrics, pictures: Mapping[str, bytes], misclassified: Sequence[Misclassification]
) -> str:
    """Render the page, without external links.

    Args:
        metrics: metrics of the run.
        pictures: PNGs by file name: confusion.png; optionally history.png, few-shot.png and augmentation.png.
        misclassified: misclassified test images, most confident first.
    """
    evaluation = metrics.test.evaluation
    return _PAGE.substitute(
        model=html.escape(metrics.model),
        recipe=html.escape(str(metrics.recipe["name"])),
        created_at=f"{metrics.created_at:%Y-%m-%d %H:%M} UTC",
        accuracy=f"{evaluation.accuracy.value:.2%}",
        interval=f"{evaluation.accuracy.low:.2%} to {evaluation.accuracy.high:.2%}",
        counted=f"{evaluation.correct:,} of {evaluation.images:,}",
        others=_other_figures(metrics),
        tuned=_marks(metrics)[0],
        footnotes=_footnotes(metrics),
        ece=f"{evaluation.ece:.4f}",
        temperature=f"{metrics.calibration.temperature:.3f}",
        parameters=f"{metrics.parameters:,}",
        checks=_rows((("✓" if c.passed else "✗"), c.name, c.detail) for c in metrics.checks),
        variants=_rows((report.precision, report.summary_line()) for report in metrics.variants),
        labels=_rows(
            (
                entry.label,
                f"{entry.precision:.2%}",
                f"{entry.recall:.2%}",
                f"{entry.f1:.4f}",
                f"{entry.images:,}",
            )
            for entry in metrics.test.labels
        ),
        data=_rows(
            (split, f"{sum(counts.values()):,}", ", ".join(f"{k} {v:,}" for k, v in counts.items()))
            for split, counts in metrics.data.counts.items()
        ),
        warnings="".join(f"<li>{html.escape(line)}</li>" for line in metrics.data.warnings()),
        learning=_learning(pictures, metrics.few_shot),
        confusion=_data_url(pictures["confusion.png"]),
        augmentation=_augmentation(pictures.get("augmentation.png")),
        misclassified="".join(map(_figure, misclassified)) or "<p>None.</p>",
        settings=_rows((key, json.dumps(value)) for key, value in metrics.recipe.items()),
        origin=html.escape(
            f"{metrics.framework} on {metrics.machine}"
            f"{f', {metrics.kernels} kernels' if metrics.kernels else ''}; {metrics.epochs} epochs"
            f"{f', {metrics.head_epochs} of them of the head only' if metrics.head_epochs else ''}, in "
            f"{metrics.training_seconds:.0f} s{_continued(metrics)}, best epoch {metrics.best_epoch}; "
            f"data digest {metrics.data_digest[:12]}"
        ),
    )


def _continued(metrics: Metrics) -> str:
    earlier = metrics.continued_from
    return f" (the first {earlier.epochs} in {earlier.run})" if earlier is not None else ""


def _marks(metrics: Metrics) -> tuple[str, str]:
    """Return the marks of test scores and of the validation accuracy, if they are optimistic."""
    return (
        f" {TUNED_ON_TEST}" if metrics.tuned_on_test else "",
        f" {CHOSE_EPOCH}" if metrics.validation is not None and metrics.validation_chose_epoch else "",
    )


def _footnotes(metrics: Metrics) -> str:
    tuned, chose = _marks(metrics)
    notes = (
        tuned and f"{TUNED_ON_TEST} Optimistic, because test images chose {metrics.tuned_on_test}",
        chose and f"{CHOSE_EPOCH} Optimistic, because validation images chose the epoch",
    )
    return "".join(f'<p class="soft">{html.escape(note)}</p>\n' for note in notes if note)


def _other_figures(metrics: Metrics) -> str:
    """Yield one tile per optional score that the run has."""
    tuned, chose = _marks(metrics)
    figures = (
        (f"AUC{tuned}", metrics.test.auc, ".4f"),
        (f"balanced accuracy{tuned}", metrics.test.balanced_accuracy, ".2%"),
        (f"top-5 accuracy{tuned}", metrics.test.top5, ".2%"),
        (f"validation accuracy{chose}", metrics.validation, ".2%"),
    )
    return "".join(_tile(name, estimate, form) for name, estimate, form in figures if estimate is not None)


def _tile(name: str, estimate: Estimate, form: str) -> str:
    return (
        f'<div class="tile"><b>{estimate.value:{form}}</b>{name}<br>'
        f'<span class="soft">95 % interval {estimate.low:{form}} to {estimate.high:{form}}</span></div>\n'
    )


def _learning(pictures: Mapping[str, bytes], points: Sequence[CurvePoint]) -> str:
    """Return the learning curves and the few-shot curve; empty if the run has neither."""
    parts = []
    if "history.png" in pictures:
        url = _data_url(pictures["history.png"])
        parts.append(f'<h2>Learning curves</h2>\n<img src="{url}" alt="loss and accuracy by epoch">')
    if points:
        url = _data_url(pictures["few-shot.png"])
        rows = _rows(
            (
                point.examples(),
                f"{point.mean:.1%}",
                f"{point.low:.1%} to {point.high:.1%}",
                f"{point.draws}",
                f"{point.worst:.1%} to {point.best:.1%}",
            )
            for point in points
        )
        parts.append(
            f'<h2>Few-shot accuracy</h2>\n<img src="{url}" alt="accuracy by number of examples">\n'
            "<table><tr><th>images per label</th><th>accuracy</th><th>95 % interval</th><th>subsets</th>"
            f"<th>worst to best</th></tr>{rows}</table>"
        )
    return "\n".join(parts)


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )


def _augmentation(png: bytes | None) -> str:
    if png is None:
        return ""
    return (
        "<h2>Augmentation</h2>\n"
        f'<img src="{_data_url(png)}" alt="training images and their augmented versions">'
    )


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _figure(example: Misclassification) -> str:
    pixels = example.pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    image.resize((_MISTAKE_SIDE, _MISTAKE_SIDE), Image.Resampling.NEAREST).save(buffer, "PNG")
    caption = f"true {example.truth}, predicted {example.predicted} ({100 * example.probability:.0f} %)"
    return (
        f'<figure title="{html.escape(example.name)}"><img src="{_data_url(buffer.getvalue())}" alt="">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


_PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$model: training report</title>
<style>
  :root { color-scheme: light; --ink: #1c2733; --soft: #5b6b7b; --line: #dfe5ec; --blue: #1f4e8c; }
  body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 60rem;
         margin: 2.5rem auto; padding: 0 1.25rem; }
  h1 { margin: 0; } h2 { margin: 2.25rem 0 .5rem; font-size: 1.1rem; color: var(--blue); }
  .soft { color: var(--soft); } .tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
  .tile { border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1.1rem; min-width: 9rem; }
  .tile b { display: block; font-size: 1.6rem; } table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
           border-bottom: 1px solid var(--line); }
  img { max-width: 100%; } .misclassified { display: flex; flex-wrap: wrap; gap: .8rem; }
  figure { margin: 0; width: 7.5rem; font-size: .8rem; }
  figure img { image-rendering: pixelated; border-radius: .3rem; }
</style>
<h1>$model</h1>
<div class="soft">recipe $recipe · $created_at</div>
<div class="tiles">
  <div class="tile"><b>$accuracy</b>test accuracy$tuned<br>
    <span class="soft">95 % interval $interval</span></div>
  <div class="tile"><b>$counted</b>test images correct, in ONNX Runtime</div>
  $others
  <div class="tile"><b>$ece</b>test calibration error<br>
    <span class="soft">temperature $temperature</span></div>
  <div class="tile"><b>$parameters</b>parameters</div>
</div>
$footnotes
<h2>Checks</h2>
<table>$checks</table>
<h2>INT8 and FP16 variants</h2>
<table>$variants</table>
$learning
$augmentation
<h2>Scores per label</h2>
<table><tr><th>label</th><th>precision</th><th>recall</th><th>F1</th><th>test images</th></tr>$labels</table>
<h2>Confusion matrix</h2>
<img src="$confusion" alt="confusion matrix">
<h2>Misclassified test images, most confident first</h2>
<div class="misclassified">$misclassified</div>
<h2>Data</h2>
<table><tr><th>split</th><th>images</th><th>images per label</th></tr>$data</table>
<ul>$warnings</ul>
<h2>Recipe</h2>
<table>$settings</table>
<p class="soft">$origin</p>
</html>
""")
