"""What a manifest says of a network with random weights, whose speed alone is measured. Knows no torch."""

from datetime import UTC, datetime

from serving.bundle import Calibration, Description, Estimate, Evaluation, Geometry, Provenance


def describe(
    name: str,
    geometry: Geometry,
    parameters: int,
    *,
    classes: int,
    embedding_size: int | None = None,
    framework: str = "none",
) -> Description:
    """A description that claims nothing.

    Args:
        name: of the network.
        geometry: of its images.
        parameters: their number.
        classes: K; the labels are numbered.
        embedding_size: D; default: K.
        framework: that made the file.
    """
    return Description(
        labels=tuple(f"class {index}" for index in range(classes)),
        geometry=geometry,
        embedding_size=embedding_size or classes,
        calibration=Calibration(temperature=1, ece_before=0, ece_after=0),
        # Nobody may take these numbers for a measurement: nothing was learnt.
        evaluation=Evaluation(images=1, correct=0, accuracy=Estimate(value=0, low=0, high=1), ece=0),
        provenance=Provenance(
            recipe=f"{name}, random weights",
            recipe_digest="0" * 64,
            data_digest="0" * 64,
            created_at=datetime.now(UTC),
            framework=framework,
            parameters=parameters,
        ),
    )
