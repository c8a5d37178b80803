"""Publishes a proven version as a bundle in the repository, atomically."""

import shutil
from pathlib import Path

from serving.bundle import (
    MODEL_FILE,
    Bundle,
    Description,
    Golden,
    Provenance,
    Reference,
    Repository,
    variant_file,
    write_golden,
)
from serving.bundle.golden import MAX_GOLDEN_IMAGES, class_balanced_indices
from serving.bundle.who import who
from training.data.splits import Split
from training.errors import GateFailed
from training.evaluation.gates import raise_if_failed
from training.evaluation.onnx_session import open_session, run
from training.recipe import Recipe
from training.report.metrics import Metrics
from training.run.run_folder import RunFolder


def publish(
    repository: Repository,
    *,
    recipe: Recipe,
    folder: RunFolder,
    metrics: Metrics,
    test: Split,
    labels: tuple[str, ...],
    reference: Reference,
) -> Bundle:
    """Publish the exported file and the report of a run folder.

    Raises:
        GateFailed: a check failed, or the version is worse than the champion; the repository is unchanged.
        BundleError: the model's name is invalid.
    """
    raise_if_failed(metrics.checks)
    challenge = metrics.champion
    if challenge is not None and challenge.decision == "refuse":
        raise GateFailed(
            f"not published: worse than version {challenge.champion}: {'; '.join(challenge.reasons)}; "
            "--force publishes it all the same"
        )

    def write(staging: Path) -> Description:
        shutil.copyfile(folder.model, staging / MODEL_FILE)
        shutil.copytree(folder.report, staging / "report")
        variants = {kept.precision: kept.variant for kept in metrics.variants if kept.kept and kept.variant}
        for precision in variants:
            shutil.copyfile(folder.path / variant_file(precision), staging / variant_file(precision))
        session = open_session(staging / MODEL_FILE)
        images = test.images[class_balanced_indices(test.labels, MAX_GOLDEN_IMAGES)]
        probabilities, embedding = run(session, images)
        write_golden(Golden(images, probabilities), staging)
        return Description(
            labels=labels,
            geometry=recipe.geometry,
            embedding_size=embedding.shape[1],
            calibration=metrics.calibration,
            evaluation=metrics.test.evaluation,
            variants=variants,
            reference=reference,
            gate=challenge and challenge.for_manifest(),
            provenance=Provenance(
                recipe=recipe.name,
                recipe_digest=metrics.recipe_digest,
                data_digest=metrics.data_digest,
                created_at=metrics.created_at,
                created_by=who(),
                framework=metrics.framework,
                parameters=metrics.parameters,
                pretrained=metrics.pretrained,
                continued_from=metrics.continued_from and metrics.continued_from.recipe_digest,
            ),
        )

    return repository.publish(metrics.model, write)
