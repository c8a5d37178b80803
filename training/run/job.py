"""A whole run: data, training, calibration, export, proof, report, publishing."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from serving.bundle import Calibration, Estimate, Reference, Repository, reference_of
from serving.bundle.golden import class_balanced_indices
from serving.bundle.measures import wilson_interval
from serving.bundle.operations import history
from training import data
from training.atomic_files import RESUME, replace_file, writing
from training.champion.compare import Challenger, Outcome, challenge_champion
from training.champion.promote import keep_champion, promote
from training.data import DataReport, Dataset
from training.data.groups import find_groups
from training.data.storage.device_images import DeviceImages
from training.devices.compilers import check_compiler
from training.devices.device import Device, prepare, release_freed_memory
from training.devices.kernels import full_precision, reporting_nondeterminism
from training.devices.out_of_memory import explaining_out_of_memory, inference_advice
from training.devices.process_group import SINGLE_PROCESS, ProcessGroup
from training.errors import GateFailed, RunFolderConflict
from training.evaluation.calibrate import calibrate, uncalibrated
from training.evaluation.proof import Proof, prove
from training.export.export import Classifier, export
from training.export.intent import find_published, write_intent
from training.export.publish import publish
from training.export.variant_report import VariantReport
from training.export.variants import make_variant
from training.export.weights_file import write_weights
from training.learning.learn import LearnContext, LearnResult, learn
from training.learning.steps import predict
from training.recipe import Recipe
from training.recorded_files import read_recorded
from training.report.gather import evidence_of_run
from training.report.metrics import METRICS_FILE, Metrics
from training.report.report import write_report
from training.report.why_section import why_section
from training.run.display import Display
from training.run.extension import (
    Extension,
    complete_extension,
    extend_finished,
    is_shorter,
    read_extension,
)
from training.run.hints import learned_nothing, too_few_photographs
from training.run.interrupts import Interrupts
from training.run.keep_splits import keep_splits
from training.run.loggers import Logger, open_loggers
from training.run.preflight import preflight
from training.run.progress import report_progress
from training.run.run_folder import RunFolder, open_run
from training.run.summary import RunSummary

_REMEDY = "move the run folder away, and start without --resume"


_Loaded = tuple[Dataset, DataReport]


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a run needs besides its recipe: paths, device, display."""

    repository: Repository
    model: str
    run_dir: Path
    data_root: Path | None
    device: Device
    display: Display
    interrupts: Interrupts
    resume: bool = False
    group: ProcessGroup = SINGLE_PROCESS
    loggers: tuple[str, ...] = ()
    force: bool = False  # promote whatever the champion is worth

    @property
    def cache(self) -> Path:
        """Folder of decoded images and features, shared by the runs in the same parent folder."""
        return self.run_dir.parent / ".cache"


def train_and_evaluate(recipe: Recipe, job: Job) -> RunSummary:
    """Run a recipe. Resuming a finished run returns its summary again, or extends it by further epochs.

    Returns: the summary; it reports a failed gate, which is not an error.

    Raises:
        LenserveError: the run failed; training.errors lists the kinds.
    """
    began_s = time.perf_counter()
    if job.resume:
        complete_extension(job.run_dir)
    earlier = RunFolder(job.run_dir)
    extends = job.resume and is_shorter(earlier, recipe)
    is_finished = earlier.summary.exists()
    if is_finished and job.resume and job.force and not extends:
        _require_promoted(earlier, job.model)
    if extends or not (job.resume and is_finished):
        _prepare(recipe, job)
    # The run that would be moved aside stays where it is, if this one cannot begin.
    loaded = _load_and_show(recipe, job) if is_finished and (extends or not job.resume) else None
    extended = ""
    if extends and loaded:
        _require_same_data(earlier, loaded[0])
        extended = extend_finished(job.run_dir, recipe)
    with open_run(job.run_dir, recipe, resume=job.resume) as (folder, message):
        if message := extended or message:
            job.display.note(message)
        if job.resume and not folder.summary.exists():
            _recover_summary(recipe, job, folder)
        job.group.barrier()  # now the other processes may read the folder
        if folder.summary.exists():
            return read_recorded(folder.summary, RunSummary, _REMEDY)
        summary = _run(recipe, job, folder, loaded, began_s)
        _write_summary(folder, summary)
        return summary


def _require_promoted(finished: RunFolder, model: str) -> None:
    """Refuse `--resume --force` where it would have no effect."""
    summary = read_recorded(finished.summary, RunSummary, _REMEDY)
    if summary.gate in (None, "promote"):
        return
    remedy = "train again without --resume"
    if summary.version is not None:
        remedy = f"promote its version with `lenserve models promote {model}@{summary.version}`"
    raise RunFolderConflict(
        f"the run in {finished.path} is finished ({summary.gate}), and --force has no effect on it: {remedy}"
    )


def _recover_summary(recipe: Recipe, job: Job, folder: RunFolder) -> None:
    """Write the summary of a run that was killed between publishing and writing it."""
    summary = find_published(folder, job.repository)
    if summary is not None:
        job.display.note(f"this run has already published {summary.path}")
        if summary.version is not None:
            challenge = read_recorded(folder.report / METRICS_FILE, Metrics, _REMEDY).champion
            decision = promote(job.repository, job.model, summary.version, challenge, job.display.warning)
            summary = summary.model_copy(update={"gate": decision})
        with _open_loggers(recipe, job, folder) as loggers:
            for logger in loggers:
                logger.result(summary.metrics)
        _write_summary(folder, summary)


def _write_summary(folder: RunFolder, summary: RunSummary) -> None:
    replace_file(folder.summary, summary.model_dump_json(indent=2).encode() + b"\n", RESUME)


def _open_loggers(recipe: Recipe, job: Job, folder: RunFolder) -> AbstractContextManager[tuple[Logger, ...]]:
    settings, warn = recipe.settings(), job.display.warning
    return open_loggers(job.loggers, folder.path, run=job.model, settings=settings, warn=warn)


def follow(recipe: Recipe, job: Job) -> None:
    """Train as one of several processes; process 0 evaluates and publishes.

    Raises:
        LenserveError: the run failed.
    """
    job.group.barrier()
    folder = RunFolder(job.run_dir)
    if folder.summary.exists():
        return
    check_compiler(recipe, job.device.torch_device)
    prepare(job.device, job.group.local_size)
    dataset, _ = load_data(recipe, job)
    with reporting_nondeterminism(job.display.warning):
        learn(recipe, dataset, _surroundings(job, folder))
    job.group.leave()


def _run(recipe: Recipe, job: Job, folder: RunFolder, loaded: _Loaded | None, began_s: float) -> RunSummary:
    with (
        reporting_nondeterminism(job.display.warning),
        _open_loggers(recipe, job, folder) as loggers,
    ):
        summary = _run_logged(recipe, job, folder, loaded, loggers, began_s)
        for logger in loggers:
            logger.result(summary.metrics)
    return summary


def _prepare(recipe: Recipe, job: Job) -> None:
    """Find what would end the run, as far as that needs no data."""
    data.require_root_named(recipe.data, job.data_root)
    data.refuse_unread_root(recipe.data, job.data_root)
    check_compiler(recipe, job.device.torch_device)
    prepare(job.device, job.group.local_size)
    job.display.note(job.device.describe())
    for warning in preflight(recipe, job.run_dir, job.repository.root):
        job.display.warning(warning)
    data.require_root(recipe.data, job.data_root)
    job.repository.prepare(job.model)
    # Invalid aliases or an invalid log would fail the run when it looks for the champion, or promotes.
    job.repository.aliases(job.model)
    if job.repository.versions(job.model):
        history(job.repository, job.model)


def _load_and_show(recipe: Recipe, job: Job) -> _Loaded:
    job.display.phase("data")
    loaded = load_data(recipe, job)
    job.display.data(loaded[1])
    return loaded


def _require_same_data(finished: RunFolder, dataset: Dataset) -> None:
    before, now = (
        read_recorded(finished.report / METRICS_FILE, Metrics, _REMEDY).data_digest,
        dataset.digest(),
    )
    if before != now:
        raise RunFolderConflict(
            f"the finished run in {finished.path} was trained on other data (digest {before[:12]}, now "
            f"{now[:12]}) and can be extended only on the same: train again without --resume"
        )


def _run_logged(  # noqa: PLR0917 - the whole run
    recipe: Recipe,
    job: Job,
    folder: RunFolder,
    loaded: _Loaded | None,
    loggers: tuple[Logger, ...],
    began_s: float,
) -> RunSummary:
    display, interrupts = job.display, job.interrupts
    dataset, data_report = loaded or _load_and_show(recipe, job)
    with writing(folder.report, RESUME):
        keep_splits(dataset, folder.report, job.repository, job.model, recipe.champion, display)
    # Read before training, to fail early if it does not fit the test images.
    pattern = recipe.data.group_pattern
    groups = None if pattern is None else find_groups(dataset.test.names_in_split, pattern)
    if hint := too_few_photographs(recipe, data_report):
        display.warning(hint)
    interrupts.raise_if_stopped("nothing has been trained yet")

    display.phase("training")
    trained = learn(recipe, dataset, _surroundings(job, folder, loggers))
    job.group.leave()  # the other processes need not wait for the export
    release_freed_memory()
    interrupts.raise_if_stopped("training is finished and saved, the model is not exported yet")

    display.phase("export and proof")
    with explaining_out_of_memory("calibration", job.device.torch_device, inference_advice(recipe)):
        calibration, validation = _calibrate(trained, dataset, job.device.torch_device)
    classifier = Classifier(trained.network.cpu(), calibration.temperature).eval()
    with writing(folder.model, RESUME):
        export(classifier, recipe.geometry, folder.model)
    interrupts.raise_if_stopped("training is finished and saved, the exported model is not proven yet")
    proof = prove(
        classifier,
        folder.model,
        dataset,
        recipe.gates,
        fitted_labels=trained.fitted_labels,
        groups=groups,
    )
    display.checks(proof.checks)
    display.biases(recipe, validation)
    if hint := learned_nothing(recipe, proof.scores):
        display.warning(hint)
    interrupts.raise_if_stopped("training is finished and saved, nothing is published yet")

    with writing(folder.path, RESUME):
        variants = _variants(recipe, folder, dataset, job)
    challenger = Challenger(
        recipe, folder.model, dataset, proof.probabilities, groups, data_report.test_near_leaks
    )
    outcome = _challenge(job, challenger, proof)
    continued_from = read_extension(folder)
    metrics = _metrics(
        recipe, job, trained, calibration, validation, data_report, proof, variants, continued_from
    ).model_copy(update={"champion": outcome and outcome.challenge})
    evidence = evidence_of_run(
        recipe,
        metrics,
        history=trained.history,
        dataset=dataset,
        proof=proof,
        model_file=folder.model,
        repository=job.repository,
        outcome=outcome,
    )
    why = why_section(
        evidence,
        trained.network,
        before_each=lambda: interrupts.raise_if_stopped(
            "training is finished and saved, nothing is published yet"
        ),
    )
    with writing(folder.report, RESUME):
        pictures = write_report(folder.report, evidence, network=trained.network, why=[why])
    for logger in loggers:
        logger.pictures(pictures, trained.network, recipe.geometry)
    if not write_weights(folder.report, trained.network):
        display.note("the weights are larger than 200 MB and are not kept: no pictures that need gradients")
    interrupts.raise_if_stopped("training is finished and saved, nothing is published yet")
    reference = reference_of(proof.probabilities)
    return _publish(recipe, job, folder, dataset, metrics, reference, began_s)


def load_data(recipe: Recipe, job: Job) -> tuple[Dataset, DataReport]:
    """Return the checked data of a run, from the cache if possible."""
    return data.load(
        recipe.data,
        recipe.geometry,
        job.data_root,
        job.cache,
        processes=job.group.local_size,
        on_progress=report_progress("decoded", job.display, job.interrupts),
    )


def _surroundings(job: Job, folder: RunFolder, loggers: tuple[Logger, ...] = ()) -> LearnContext:
    extension = read_extension(folder)
    return LearnContext(
        folder=folder,
        cache=job.cache,
        device=job.device,
        display=job.display,
        interrupts=job.interrupts,
        group=job.group,
        loggers=loggers,
        extends=None if extension is None else extension.recipe_digest,
    )


def _calibrate(
    trained: LearnResult, dataset: Dataset, device: torch.device
) -> tuple[Calibration, Estimate | None]:
    """Return the temperature, fitted on the validation split, and the accuracy on that split.

    Without a validation split the temperature is 1, with its calibration error on the test split, and the
    accuracy is None.
    """
    split = dataset.validation if len(dataset.validation) else dataset.test
    images = DeviceImages(split.images, torch.device("cpu"))  # (N, H, W, C)
    with full_precision(device):  # as the published file computes
        logits = torch.cat(list(predict(trained.network.to(device), images))).cpu().numpy()  # (N, K)
    if not len(dataset.validation):
        return uncalibrated(logits, split.labels), None
    correct = int((logits.argmax(axis=1) == split.labels).sum())
    return calibrate(logits, split.labels), wilson_interval(correct, len(split))


def _variants(recipe: Recipe, folder: RunFolder, dataset: Dataset, job: Job) -> tuple[VariantReport, ...]:
    reports = []
    for precision in recipe.variants.precisions:
        job.interrupts.raise_if_stopped("training is finished and saved, nothing is published yet")
        chosen = class_balanced_indices(dataset.train.labels, recipe.variants.calibration_images)
        report = make_variant(
            precision,
            folder.model,
            calibration=dataset.train.images[chosen],
            validation=dataset.validation,
            test=dataset.test,
            labels=dataset.labels,
            recipe=recipe.variants,
        )
        job.display.note(f"  {report.precision} {report.summary_line()}")
        reports.append(report)
    return tuple(reports)


def _challenge(job: Job, challenger: Challenger, proof: Proof) -> Outcome | None:
    """Compare with the champion; None if a check failed, which refuses the version anyway."""
    if not all(check.passed for check in proof.checks):
        return None
    outcome = challenge_champion(
        job.repository,
        job.model,
        challenger,
        data_root=job.data_root,
        cache=job.cache,
        force=job.force,
    )
    job.display.challenge(outcome.challenge, job.model)
    job.interrupts.raise_if_stopped("training is finished and saved, nothing is published yet")
    return outcome


def _metrics(  # noqa: PLR0917 - one argument per measured value
    recipe: Recipe,
    job: Job,
    trained: LearnResult,
    calibration: Calibration,
    validation: Estimate | None,
    data_report: DataReport,
    proof: Proof,
    variants: tuple[VariantReport, ...],
    continued_from: Extension | None,
) -> Metrics:
    return Metrics(
        model=job.model,
        recipe=recipe.settings(),
        recipe_digest=recipe.digest(),
        data_digest=trained.data_digest,
        data=data_report,
        epochs=len(trained.history),
        head_epochs=sum(record.head_only for record in trained.history),
        best_epoch=trained.best_epoch,
        training_seconds=sum(record.seconds for record in trained.history),
        earlier_seconds=trained.earlier_seconds,
        machine=job.device.machine,
        framework=f"torch {torch.__version__}",
        kernels=job.device.kernels,
        continued_from=continued_from,
        parameters=trained.network.parameter_count(),
        pretrained=trained.network.pretrained,
        tuned_on_test=recipe.tuned_on_test,
        few_shot=trained.curve,
        calibration=calibration,
        validation=validation,
        validation_chose_epoch=recipe.validation_chose_epoch,
        test=proof.scores,
        checks=proof.checks,
        variants=variants,
        created_at=datetime.now(UTC),
    )


def _publish(  # noqa: PLR0917 - the last step needs the results of all others
    recipe: Recipe,
    job: Job,
    folder: RunFolder,
    dataset: Dataset,
    metrics: Metrics,
    reference: Reference,
    began_s: float,
) -> RunSummary:
    version, path, refusal, decision = None, None, None, None
    write_intent(folder, job.repository, job.model, round(time.perf_counter() - began_s, 1))
    try:
        with writing(job.repository.root, RESUME):
            keep_champion(job.repository, job.model, metrics.champion)
            bundle = publish(
                job.repository,
                recipe=recipe,
                folder=folder,
                metrics=metrics,
                test=dataset.test,
                labels=dataset.labels,
                reference=reference,
            )
            decision = promote(
                job.repository, job.model, bundle.version, metrics.champion, job.display.warning
            )
        version, path = bundle.version, job.repository.location(bundle.model, bundle.version)
    except GateFailed as error:
        refusal, decision = str(error), "refuse"
    return RunSummary(
        model=job.model,
        version=version,
        path=path,
        verdict="published" if refusal is None else "refused",
        gate=decision,
        metrics=metrics.headline(),
        seconds=round(time.perf_counter() - began_s, 1),
        refusal=refusal,
    )
