"""A map of test images by what the network makes of them: t-SNE of the embeddings of the exported file."""

import numpy as np
import numpy.typing as npt
from sklearn.manifold import TSNE

from training.report.blocks import Picture
from training.report.charts import CATEGORIES, INK, PALE, RED, chart, svg
from training.report.predictions import Predictions

MOST_IMAGES = 1000
_FEWEST_IMAGES = 20
_MOST_LABELS = 20  # colours that can be told apart
_MOST_FEATURES = 64  # more are first reduced to their principal components
_ITERATIONS = 500
_PERPLEXITY = 30.0

Floats = npt.NDArray[np.floating]


def map_positions(embedding: Floats) -> Floats:
    """(N, D) -> (N, 2): similar embeddings come close together, far distances mean little."""
    scaled = embedding.astype(np.float64)
    scaled -= scaled.mean(axis=0)
    parts = _principal_components(scaled)
    start = parts[:, :2] / (parts[:, 0].std() or 1.0) * 1e-4  # as scikit-learn's init="pca"
    reducer = TSNE(
        perplexity=min(_PERPLEXITY, (len(parts) - 1) / 3),
        init=start.astype(np.float32),
        max_iter=_ITERATIONS,
        random_state=0,
    )
    positions: Floats = reducer.fit_transform(parts.astype(np.float32))
    return positions


def _principal_components(centred: Floats) -> Floats:
    """(N, D) -> (N, at most 64), from the smaller of both products: a hundredth of the time of an SVD."""
    if centred.shape[1] <= len(centred):
        _, axes = np.linalg.eigh(centred.T @ centred)  # ascending
        found: Floats = centred @ axes[:, : -_MOST_FEATURES - 1 : -1]
        return found
    squares, axes = np.linalg.eigh(centred @ centred.T)
    sizes = np.sqrt(np.maximum(squares, 0))
    parts: Floats = (axes * sizes)[:, : -_MOST_FEATURES - 1 : -1]
    return parts


def draw_embedding_map(test: Predictions, embedding: Floats) -> Picture | None:
    """Draw the map; None with fewer than 20 images.

    Args:
        test: the predictions for the test split.
        embedding: (N, D) of the test split.
    """
    if len(test) < _FEWEST_IMAGES:
        return None
    chosen = np.sort(np.random.default_rng(0).permutation(len(test))[:MOST_IMAGES])
    positions = map_positions(embedding[chosen])
    truth, wrong = test.truth[chosen], ~test.correct[chosen]
    figure, axes = chart(4.8, 4.6)
    few = len(np.unique(truth)) <= _MOST_LABELS
    if few:
        for place, label in enumerate(np.unique(truth)):
            across, up = positions[truth == label].T
            colour = CATEGORIES[place % len(CATEGORIES)]
            axes.scatter(across, up, s=8, color=colour, linewidths=0, label=_short(test.labels[label]))
    else:
        axes.scatter(positions[~wrong, 0], positions[~wrong, 1], s=8, color=PALE, linewidths=0, label="right")
    if wrong.any():
        axes.scatter(
            positions[wrong, 0],
            positions[wrong, 1],
            s=22,
            facecolors="none",
            edgecolors=INK if few else RED,
            linewidths=0.9,
            label="wrong",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.legend(
        loc="outside lower center",
        ncols=5,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        markerscale=1.6,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    coloured = "coloured by true label" if few else "coloured by result"
    return Picture(
        "embedding-map",
        f"Map of {len(chosen):,} test images by their embeddings, {coloured}; {int(wrong.sum()):,} with a "
        "ring are predicted wrongly.",
        svg(figure, "embedding-map"),
        "svg",
        title="Map of the test images",
        caption=f"t-SNE of the embeddings of {len(chosen):,} test images, {coloured}. Images that the "
        "network sees alike are close together; a ring is a wrong prediction. Sizes of groups and distances "
        "between them mean little.",
        wide=True,
    )


def _short(label: str, most: int = 18) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
