"""The reference in the manifest: counts of predicted labels and of confidence."""

import json
import math

import numpy as np
import pytest

from serving.bundle import Description, Manifest, Reference, reference_of
from serving.bundle.manifest import CONFIDENCE_BUCKETS
from serving.bundle.reference import count_answers, stability_index
from serving.errors import InvalidManifest
from tests.serving.bundle.publishing import Publish

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.85, 0.05], [0.65, 0.2, 0.15], [0.0, 0.0, 1.0]])  # (N, K)


def test_answers_are_counted_by_label_and_by_confidence() -> None:
    """A bucket includes its bound; a confidence of 1 is in the last one."""
    answers = count_answers(PROBABILITIES)
    assert answers.predicted.tolist() == [2, 1, 1]
    assert answers.confidence.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 1]
    assert answers.confidence_sum == pytest.approx(3.2)


def test_a_reference_is_written_and_read(description: Description, publish: Publish) -> None:
    """A manifest without one has no such key, so that older servers can read it."""
    plain = publish().manifest
    assert "reference" not in json.loads(plain.to_json())
    assert plain.reference is None
    reference = reference_of(PROBABILITIES)
    sealed = Manifest.seal(description.model_copy(update={"reference": reference}), plain.files)
    assert Manifest.from_json(sealed.to_json()).reference == reference


@pytest.mark.parametrize(
    ("predicted", "confidence", "message"),
    [
        ((1, 2), (3, *[0] * (CONFIDENCE_BUCKETS - 1)), "has 2 counts, expected one for each of the 3 labels"),
        ((1, 1, 1), (2, *[0] * (CONFIDENCE_BUCKETS - 1)), "counts 3 images and confidence 2"),
        ((0, 0, 0), (0,) * CONFIDENCE_BUCKETS, "at least 1"),
        ((1, 1, 1), (3,), "reference.confidence"),
    ],
)
def test_a_reference_that_does_not_add_up_is_refused(
    predicted: tuple[int, ...], confidence: tuple[int, ...], message: str, publish: Publish
) -> None:
    """The message has both numbers."""
    document = json.loads(publish().manifest.to_json())
    document["reference"] = {"predicted": predicted, "confidence": confidence}
    with pytest.raises(InvalidManifest, match=message):
        Manifest.from_json(json.dumps(document).encode())


def test_a_reference_counts_every_image_once() -> None:
    """The counts of labels and of confidence have the same sum, the number of images."""
    generator = np.random.default_rng(0)
    reference = reference_of(generator.dirichlet(np.ones(20), 500))
    assert isinstance(reference, Reference)
    assert sum(reference.predicted) == sum(reference.confidence) == 500


def test_the_index_is_that_of_its_definition() -> None:
    """Of shares, with half an image added to each count, less the expectation without drift."""
    now, before = (300, 700), (500, 500)
    shares = [((here + 0.5) / 1001, (there + 0.5) / 1001) for here, there in zip(now, before, strict=True)]
    expected = sum((p - q) * math.log(p / q) for p, q in shares) - (1 / 1000 + 1 / 1000)
    assert stability_index(now, before) == pytest.approx(expected)


def test_chance_alone_gives_about_zero() -> None:
    """On average over draws from one distribution."""
    random = np.random.default_rng(0)
    draws = random.multinomial(500, [0.1] * 10, (200, 2))
    assert np.mean([stability_index(now, before) for now, before in draws.tolist()]) < 0.012
