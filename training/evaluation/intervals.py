"""Estimates with 95 % intervals: a proportion, a mean accuracy, balanced accuracy, AUC. All have a width."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import rankdata
from scipy.stats import t as student_t

from serving.bundle import Estimate
from serving.bundle.measures import wilson

_Z_95 = 1.959963984540054  # standard normal, two-sided 95 %
MIN_IMAGES_FOR_RECALL = 10  # images of each label: with fewer, the interval says nothing
_DRAWS = 2000
_DRAWS_AT_ONCE = 100

_Floats = npt.NDArray[np.float64]


def mean_accuracy(correct: npt.NDArray[np.bool_]) -> Estimate:
    """Mean accuracy of networks on the same images. The 95 % interval is for other networks and other images.

    The mean varies with the networks and with the images, as in a crossed two-way random-effects model. Its
    variance is at most the variance of the networks' means over D plus that of the images' means over N; the
    interaction is in both, so the interval is slightly too wide (Owen 2007, arXiv:0712.1111). The share of
    the networks is Student's t interval. The share of the images is Wilson's with the effective number of
    images, p(1 - p) divided by the variance of the mean (Franco et al. 2019, doi:10.1093/jssam/smy019). The
    two distances from the mean add up as squares (Zou and Donner 2008, doi:10.1002/sim.3095).

    Args:
        correct: (D, N), whether network d classifies image n correctly. For one network, the interval is
            Wilson's.
    """
    networks = len(correct)
    value = float(correct.mean())
    of_images = wilson(value, _effective_images(correct, value))
    if networks == 1:
        return of_images
    means = correct.mean(axis=1)  # (D,)
    reach = float(student_t.ppf(0.975, networks - 1)) * float(means.std(ddof=1)) / math.sqrt(networks)
    low = value - math.hypot(reach, value - of_images.low)
    high = value + math.hypot(reach, of_images.high - value)
    return _estimate(value, max(0.0, low), min(1.0, high))


def _effective_images(correct: npt.NDArray[np.bool_], value: float) -> float:
    """Return the number of independent images that would give the mean the same variance."""
    networks, images = len(correct), correct.shape[1]
    if networks == 1 or images == 1 or value in (0, 1):
        return float(images)
    variance = float(correct.mean(axis=0).var(ddof=1)) / images
    most = float(images * networks)  # if the networks' errors were independent
    return min(most, value * (1 - value) / variance) if variance else most


def balanced_accuracy(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> Estimate | None:
    """Mean recall of the labels that occur, with a 95 % credible interval.

    Each recall is drawn from its posterior under Jeffreys' prior, Beta(correct + 1/2, wrong + 1/2) (Brown
    et al. 2001). A bootstrap would call a recall of 1 on ten images certain.

    Args:
        truth: (N,) labels.
        predicted: (N,) labels.

    Returns: None if a label has fewer than ten images.
    """
    found = [predicted[truth == label] == label for label in np.unique(truth)]
    images = np.array([len(each) for each in found])  # (K,)
    correct = np.array([each.sum() for each in found])  # (K,)
    if images.min() < MIN_IMAGES_FOR_RECALL:
        return None
    random = np.random.default_rng(0)
    drawn = random.beta(correct + 0.5, images - correct + 0.5, (_DRAWS, len(images))).mean(axis=1)  # (draws,)
    return _percentile_interval(float((correct / images).mean()), drawn)


def roc_auc(
    scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_], groups: Sequence[str] | None = None
) -> Estimate | None:
    """Area under the ROC curve with its 95 % interval; ties count half.

    Without groups the interval is DeLong's (1988), symmetric on the logit scale. With groups, such as
    patients, whole groups are resampled. Where either has no width, because all positives score higher than
    all negatives (or lower), the interval is Newcombe's (2006, method 5): to an AUC what Wilson's is to a
    proportion.

    Args:
        scores: (N,) higher for positives.
        positive: (N,)
        groups: N group names; images of one group are not independent.

    Returns: None if only one label occurs.
    """
    if positive.all() or not positive.any():
        return None
    if groups is not None and len(set(groups)) < len(groups):
        value, drawn = _resample_groups(scores, positive, groups)
        low, high = np.percentile(drawn, [2.5, 97.5])
    else:
        value, variance = _delong(scores, positive)
        low, high = _logit_interval(value, variance)
    if low == high:
        low, high = _newcombe_interval(value, int(positive.sum()), int((~positive).sum()))
    return _estimate(value, float(low), float(high))


def _delong(scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """AUC and its variance by DeLong et al. (1988), from midranks (Sun and Xu 2014)."""
    ranks = rankdata(scores)  # (N,)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    # Share of the other label that each image is ranked above (positives) or below (negatives).
    above = (ranks[positive] - rankdata(scores[positive])) / negatives  # (positives,)
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / positives  # (negatives,)
    variance = sum(float(each.var(ddof=1)) / len(each) for each in (above, below) if len(each) > 1)
    return float(above.mean()), variance


def _logit_interval(value: float, variance: float) -> tuple[float, float]:
    if not 0 < value < 1 or not variance:
        return value, value
    half_width = _Z_95 * math.sqrt(variance) / (value * (1 - value))  # delta method
    centre = logit(value)
    return float(expit(centre - half_width)), float(expit(centre + half_width))


def _newcombe_interval(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """Solve |AUC - value| = z * standard error(AUC), with the error of Hanley and McNeil (1982)."""
    pairs_per_image = (positives + negatives) / 2 - 1

    def distance(area: float) -> float:
        spread = 1 + pairs_per_image * ((1 - area) / (2 - area) + area / (1 + area))
        return (area - value) ** 2 - _Z_95**2 * area * (1 - area) * spread / (positives * negatives)

    low = 0.0 if value == 0 else brentq(distance, 0.0, value - 1e-12)
    high = 1.0 if value == 1 else brentq(distance, value + 1e-12, 1.0)
    return float(low), float(high)


def _resample_groups(
    scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_], groups: Sequence[str]
) -> tuple[float, _Floats]:
    """Return the AUC, and the AUC of each resample of groups that contains both labels."""
    names, member_of = np.unique(np.asarray(groups), return_inverse=True)  # (G,), (N,)
    order = np.argsort(scores, kind="stable")
    positive, member_of = positive[order], member_of[order]  # (N,)
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of runs of equal scores
    random = np.random.default_rng(0)
    shares = np.full(len(names), 1 / len(names))
    drawn = []
    for _ in range(_DRAWS // _DRAWS_AT_ONCE):
        times = random.multinomial(len(names), shares, _DRAWS_AT_ONCE)  # (draws, G) how often each is drawn
        drawn.append(_weighted_auc(times[:, member_of].astype(np.float64), positive, starts))
    areas = np.concatenate(drawn)
    return float(_weighted_auc(np.ones((1, len(positive))), positive, starts)[0]), areas[~np.isnan(areas)]


def _weighted_auc(weights: _Floats, positive: npt.NDArray[np.bool_], starts: npt.NDArray[np.intp]) -> _Floats:
    """Area under the ROC curve for each row of weights, (draws,); NaN where a label has no weight."""
    positives = np.add.reduceat(weights * positive, starts, axis=1)  # (draws, distinct scores)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)  # (draws,)
    areas: _Floats = np.full(len(weights), np.nan)
    np.divide((positives * below).sum(axis=1), pairs, out=areas, where=pairs > 0)
    return areas


def _percentile_interval(value: float, drawn: _Floats) -> Estimate:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return _estimate(value, float(low), float(high))


def _estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=min(value, low), high=max(value, high))
