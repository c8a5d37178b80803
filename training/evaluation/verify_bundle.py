"""Repeats the proof of a published bundle: its files, its golden examples, its report, and its test split."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from serving.bundle import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, Bundle, Evaluation, Golden, variant_file
from serving.bundle.manifest import Strict
from serving.errors import BundleError, DigestMismatch, LenserveError, UsageError
from serving.validation_errors import describe
from training.data import WITHOUT_FILES
from training.errors import RecipeError, TwinUnavailable
from training.evaluation.compare_scores import compare_labels, compare_scores
from training.evaluation.evaluate import score
from training.evaluation.evaluate_bundle import BundleTestSplit, data_recipe, load_test_split, locate
from training.evaluation.gates import Check
from training.evaluation.onnx_session import open_session, run
from training.evaluation.parity import check_parity
from training.evaluation.proof import score_checks
from training.explain.twin import read_recipe, read_twin
from training.export.weights_file import WEIGHTS_FILE
from training.recipe import GateRecipe
from training.report.metrics import METRICS_FILE, Metrics

_REPORT = f"report/{METRICS_FILE}"
_WEIGHTS = f"report/{WEIGHTS_FILE}"
_ROUNDING = 1e-6  # of probabilities, between two runs of a file on one machine
_MARGIN = 10  # the largest difference on a test split, over the largest on 32 golden examples
_MAX_NAMED_FILES = 5


class Verification(Strict):
    """What was compared with a bundle's manifest, and what could not be."""

    model: str
    version: int
    path: str
    digest: str = Field(description="SHA-256 of manifest.json")
    holds: bool = Field(description="whether every check passed")
    complete: bool = Field(description="whether the test split was evaluated")
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = Field(description="one line each, with the reason")
    seconds: float


@dataclass(frozen=True, slots=True)
class _Reproduced:
    """A file that reproduces the golden examples."""

    name: str
    session: Any  # ONNX Runtime ships no type information
    published: Evaluation | None  # None: imported without labelled images
    noise: float  # how far a probability may move from machine to machine


@dataclass(slots=True)
class _Findings:
    """What has been found so far."""

    checks: list[Check] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    complete: bool = False

    def add(self, name: str, detail: str, *, passed: bool) -> None:
        self.checks.append(Check(name=name, passed=passed, detail=detail))


def verify_bundle(bundle_dir: Path, data_root: Path | None, cache: Path | None = None) -> Verification:
    """Repeat the whole proof of a bundle, as far as its files and the data allow.

    Args:
        bundle_dir: <repository>/<model>/<version>.
        data_root: the data that the bundle was tested on; None: only sources without files are evaluated.
        cache: directory of decoded images; None: they are decoded in memory.

    Returns: the checks. A difference is a failed check, not an error.

    Raises:
        UsageError: `bundle_dir` is not a version's directory.
        BundleError: the manifest is missing or invalid.
    """
    began_s = time.perf_counter()
    repository, model, version = locate(bundle_dir)
    bundle = repository.read_manifest(model, version)
    findings = _Findings()
    intact = _verify_files(bundle, findings)
    metrics = _verify_report(bundle, intact, findings)
    golden = _read_golden(bundle, intact, findings)
    reproduced = [] if golden is None else list(_verify_golden(bundle, golden, intact, findings))
    if golden is None or not reproduced:
        findings.not_checked.append("test split: no file reproduces the golden examples")
    elif _REPORT not in intact:
        findings.not_checked.append(f"test split: {_why_no_report(bundle)}")
    elif test := _load_test(bundle, data_root, cache, findings):
        _verify_test_split(bundle, golden, reproduced, test, metrics, findings)
        _verify_parity(bundle, reproduced, test, intact, findings)
        findings.complete = True
    return Verification(
        model=bundle.model,
        version=bundle.version,
        path=str(bundle.folder),
        digest=bundle.digest,
        holds=all(check.passed for check in findings.checks),
        complete=findings.complete,
        checks=tuple(findings.checks),
        not_checked=tuple(findings.not_checked),
        seconds=round(time.perf_counter() - began_s, 1),
    )


def _verify_files(bundle: Bundle, findings: _Findings) -> set[str]:
    """Compare all files with their digests; return the names of those that match."""
    listed = bundle.manifest.files
    intact = set()
    for name in listed:
        try:
            bundle.verify(name)
        except DigestMismatch as error:
            findings.add(f"digest of {name}", str(error), passed=False)
        else:
            intact.add(name)
    if len(intact) == len(listed):
        findings.add("digests", f"{len(intact)} of {len(listed)} files match", passed=True)
    found = {
        path.relative_to(bundle.folder).as_posix() for path in bundle.folder.rglob("*") if path.is_file()
    }
    if unlisted := sorted(found - set(listed) - {MANIFEST_FILE}):
        named = ", ".join(map(repr, unlisted[:_MAX_NAMED_FILES]))
        findings.not_checked.append(f"{len(unlisted)} files that manifest.json does not list: {named}")
    return intact


def _verify_report(bundle: Bundle, intact: set[str], findings: _Findings) -> Metrics | None:
    """Compare the report's figures with the manifest's; None if there is no intact report."""
    if _REPORT not in intact:
        findings.not_checked.append(f"report and gates: {_why_no_report(bundle)}")
        return None
    try:
        metrics = Metrics.model_validate_json((bundle.folder / _REPORT).read_bytes())
    except ValidationError as error:
        findings.add("report", f"{bundle.folder / _REPORT}: {describe(error, Metrics)}", passed=False)
        return None
    manifest, origin = bundle.manifest, bundle.manifest.provenance
    variants = {report.precision: report.variant for report in metrics.variants if report.kept}
    compared = {
        "evaluation": (metrics.test.evaluation, manifest.evaluation),
        "calibration": (metrics.calibration, manifest.calibration),
        "variants": (variants, dict(manifest.variants)),
        "gate": (None if metrics.champion is None else metrics.champion.for_manifest(), manifest.gate),
        "provenance.recipe_digest": (metrics.recipe_digest, origin.recipe_digest),
        "provenance.data_digest": (metrics.data_digest, origin.data_digest),
        "provenance.parameters": (metrics.parameters, origin.parameters),
        "provenance.pretrained": (metrics.pretrained, origin.pretrained),
    }
    for key, value in manifest.geometry.model_dump().items():
        compared[f"geometry.{key}"] = metrics.recipe.get(f"geometry.{key}", value), value
    differing = ", ".join(key for key, (reported, stated) in compared.items() if reported != stated)
    detail = f"differs from manifest.json in {differing}" if differing else "agrees with manifest.json"
    findings.add("report", detail, passed=not differing)
    return metrics


def _why_no_report(bundle: Bundle) -> str:
    if _REPORT not in bundle.manifest.files and bundle.manifest.provenance.imported:
        return "another program trained this version, so it has no report"
    return f"{_REPORT} is not the published file"


def _read_golden(bundle: Bundle, intact: set[str], findings: _Findings) -> Golden | None:
    if GOLDEN_FILE not in intact:
        findings.not_checked.append(f"golden examples: {GOLDEN_FILE} is not the published file")
        return None
    try:
        return bundle.golden()
    except BundleError as error:
        findings.add("golden examples", str(error), passed=False)
        return None


def _verify_golden(
    bundle: Bundle, golden: Golden, intact: set[str], findings: _Findings
) -> Iterator[_Reproduced]:
    """Recompute the golden examples in each file; yield the files that reproduce them."""
    manifest = bundle.manifest
    files: list[tuple[str, float, Evaluation | None]] = [
        (MODEL_FILE, manifest.golden_tolerance, manifest.evaluation)
    ]
    for precision, variant in manifest.variants.items():
        files.append((variant_file(precision), variant.golden_tolerance, variant.evaluation))
    for name, tolerance, evaluation in files:
        if name not in intact:
            findings.not_checked.append(f"{name}: it is not the published file")
            continue
        try:
            session = open_session(bundle.folder / name)
            probabilities, embedding = run(session, golden.images)
            difference = golden.largest_difference(probabilities)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises many kinds of errors
            findings.add(
                f"golden examples of {name}",
                f"cannot be run: {str(error).partition(chr(10))[0]}",
                passed=False,
            )
            continue
        detail = f"probabilities differ by {difference:.2g}, tolerance {tolerance:.2g}"
        findings.add(f"golden examples of {name}", detail, passed=difference <= tolerance)
        if embedding.shape[1] != manifest.embedding_size:
            sizes = f"{embedding.shape[1]}, published {manifest.embedding_size}"
            findings.add(f"embedding size of {name}", sizes, passed=False)
        if difference <= tolerance:
            # The golden probabilities are those of model.onnx. A variant differs from them on every machine,
            # so only its tolerance bounds what the machine adds.
            noise = _MARGIN * difference + _ROUNDING if name == MODEL_FILE else tolerance
            yield _Reproduced(name, session, evaluation, min(noise, tolerance))


def _load_test(
    bundle: Bundle, data_root: Path | None, cache: Path | None, findings: _Findings
) -> BundleTestSplit | None:
    try:
        recipe = data_recipe(bundle, None)
    except UsageError as error:
        findings.not_checked.append(f"test split: {error}")
        return None
    if data_root is None and recipe.source not in WITHOUT_FILES:
        findings.not_checked.append(
            f"test split: source {recipe.source} reads files, name their directory with --data-root"
        )
        return None
    try:
        return load_test_split(bundle, recipe, data_root, cache)
    except LenserveError as error:
        findings.add("test split", str(error), passed=False)
        return None


def _verify_test_split(  # noqa: PLR0917 - it compares all parts of the bundle
    bundle: Bundle,
    golden: Golden,
    reproduced: list[_Reproduced],
    test: BundleTestSplit,
    metrics: Metrics | None,
    findings: _Findings,
) -> None:
    known = {image.tobytes() for image in test.images}
    among = sum(image.tobytes() in known for image in golden.images)
    total = len(golden.images)
    findings.add("golden examples are test images", f"{among} of {total}", passed=among == total)
    found = {each.name: run(each.session, test.images)[0] for each in reproduced}  # (N, K) each
    noise = {each.name: each.noise for each in reproduced}
    for each in reproduced:
        if each.published is not None:
            findings.checks += compare_scores(
                each.name, found[each.name], test.truth, each.published, each.noise
            )
    exported = found.get(MODEL_FILE)
    if exported is None:
        return
    for precision, variant in bundle.manifest.variants.items():
        name = variant_file(precision)
        if name in found:
            findings.checks.append(
                compare_labels(name, found[name], exported, variant.same_labels, noise[name])
            )
    if metrics is not None:
        scores = score(exported, test.truth, bundle.manifest.labels, test.groups)
        findings.checks += score_checks(scores, _gates(metrics))


def _verify_parity(
    bundle: Bundle,
    reproduced: list[_Reproduced],
    test: BundleTestSplit,
    intact: set[str],
    findings: _Findings,
) -> None:
    """Compare model.onnx with the network in torch, if the report has its weights."""
    exported = next((each for each in reproduced if each.name == MODEL_FILE), None)
    if exported is None or _WEIGHTS not in intact:
        findings.not_checked.append(f"agreement with torch: {MODEL_FILE} or {_WEIGHTS} is missing or damaged")
        return
    try:
        max_gap = read_recipe(bundle).gates.max_parity_gap
        twin = read_twin(bundle)
    except RecipeError as error:
        findings.not_checked.append(f"agreement with torch: {error}")
    except TwinUnavailable as error:
        findings.add("agreement with torch", str(error), passed=False)
    else:
        findings.checks += check_parity(twin, exported.session, test.images, max_gap)


def _gates(metrics: Metrics) -> GateRecipe:
    """The gates of the bundle's recipe; those that it does not have keep their defaults."""
    known = {f"gates.{key}": key for key in GateRecipe.model_fields}
    return GateRecipe.model_validate(
        {known[key]: value for key, value in metrics.recipe.items() if key in known}
    )
