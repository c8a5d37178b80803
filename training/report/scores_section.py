"""The section with every score: confusion matrix, labels, curves of two labels, reliability, coverage."""

from training.report.blocks import Block, Row, Section
from training.report.confusion import confusion_matrix, label_tables
from training.report.evidence import VALIDATION, Evidence
from training.report.ranking import ranking_blocks
from training.report.reliability import draw_reliability, draw_risk_coverage, risk_table


def scores_section(evidence: Evidence) -> Section:
    """The section; the curves need predictions."""
    scores, test = evidence.metrics.test, evidence.test
    blocks: list[Block] = [confusion_matrix(scores), *label_tables(scores)]
    if test is not None:
        blocks += ranking_blocks(test, evidence.predictions.get(VALIDATION))
        temperature = evidence.metrics.calibration.temperature
        blocks += [
            Row(
                (
                    draw_reliability(test, temperature, scores.evaluation.ece),
                    draw_risk_coverage(test),
                )
            ),
            risk_table(test),
        ]
    return Section(
        "scores",
        "Scores",
        tuple(blocks),
        "Measured once, on the test split, with the exported file in ONNX Runtime.",
    )
