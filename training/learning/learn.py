"""Trains, fits or loads a network, as the recipe's method says."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training.data import Dataset
from training.data.splits import Labels, Split
from training.devices.device import Device
from training.devices.out_of_memory import explaining_out_of_memory, inference_advice
from training.devices.process_group import SINGLE_PROCESS, ProcessGroup
from training.few_shot.curve import CurvePoint
from training.few_shot.features import Features, extract_features
from training.few_shot.fit import FittedHead, accuracy_curve
from training.learning.history import EpochRecord, Stage
from training.learning.loop import train
from training.networks import Network, build
from training.networks.backbones import HEAD, Backbone, HeadOnly, build_classifier
from training.networks.heads import FittedHeadNetwork
from training.networks.layer_features import LayerFeatures, build_extractor
from training.recipe import Recipe
from training.recipe.sections import AugmentationRecipe
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.loggers import Logger
from training.run.progress import report_progress
from training.run.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class LearnContext:
    """What learning needs besides the recipe and the data."""

    folder: RunFolder
    cache: Path  # directory of cached features
    device: Device
    display: Display
    interrupts: Interrupts
    group: ProcessGroup = SINGLE_PROCESS
    loggers: tuple[Logger, ...] = ()
    extends: str | None = None  # digest of the shorter recipe whose finished run this one continues


@dataclass(frozen=True, slots=True)
class LearnResult:
    """A network with its final weights, and the history of its training."""

    network: Network
    data_digest: str
    history: tuple[EpochRecord, ...] = ()
    best_epoch: int = 0
    earlier_seconds: float = 0.0  # training time before the run was resumed
    curve: tuple[CurvePoint, ...] = ()  # accuracy by number of examples
    fitted_labels: Labels | None = None  # scikit-learn's predictions for the test split


def learn(recipe: Recipe, dataset: Dataset, context: LearnContext) -> LearnResult:
    """Give a network its weights by the recipe's method: train, few-shot or as-is.

    Raises:
        RecipeError: the network cannot be built from the recipe.
        WeightsError: pretrained weights cannot be read, or do not fit the network.
        CheckpointError: see `training.learning.loop.train`; so are Diverged, Interrupted, OutOfMemory,
            GraphCaptureFailed and ProcessLost.
    """
    if recipe.method == "as-is":
        return LearnResult(build_classifier(recipe.network, recipe.geometry), dataset.digest())
    torch.manual_seed(recipe.training.seed)
    if recipe.method == "few-shot":
        return _fit_head(recipe, dataset, context)
    with explaining_out_of_memory("training", torch.device("cpu"), "choose a smaller network"):
        network = build(recipe.network, recipe.geometry, len(dataset.labels))
    if isinstance(network, Backbone) and _features_are_constant(recipe):
        return _train_head(recipe, dataset, network, context, context.folder.checkpoint, later_epochs=0)
    if isinstance(network, Backbone) and recipe.training.head_epochs:
        checkpoint, epochs = context.folder.head_checkpoint, recipe.training.epochs
        head = _train_head(_head_stage(recipe), dataset, network, context, checkpoint, later_epochs=epochs)
        after_head = Stage(earlier=head.history)
        whole = _train(recipe, dataset, network, context, context.folder.checkpoint, after_head)
        return replace(whole, earlier_seconds=head.earlier_seconds + whole.earlier_seconds)
    return _train(recipe, dataset, network, context, context.folder.checkpoint, Stage())


def _features_are_constant(recipe: Recipe) -> bool:
    """Check that features can be computed once: the trunk is frozen and images are not augmented."""
    return recipe.network.train_from == HEAD and recipe.augmentation == AugmentationRecipe()


def _head_stage(recipe: Recipe) -> Recipe:
    """Derive the recipe of the first stage, which trains the head alone and has its own checkpoint."""
    training = recipe.training.model_copy(
        update={
            "epochs": recipe.training.head_epochs,
            "learning_rate": recipe.training.head_learning_rate,
            "head_rate_factor": 1.0,
            "averaging": 0.0,
            "keep": "best",
        }
    )
    return recipe.model_copy(update={"training": training, "augmentation": AugmentationRecipe()})


def _train(  # noqa: PLR0917 - the arguments of `train`
    recipe: Recipe,
    dataset: Dataset,
    network: Network,
    context: LearnContext,
    checkpoint: Path,
    stage: Stage,
) -> LearnResult:
    trained = train(
        recipe,
        dataset,
        network=network,
        device=context.device.torch_device,
        checkpoint_path=checkpoint,
        display=context.display,
        interrupts=context.interrupts,
        group=context.group,
        loggers=context.loggers,
        stage=stage,
        extends=context.extends,
    )
    return LearnResult(
        trained.network,
        trained.data_digest,
        trained.history,
        trained.best_epoch,
        earlier_seconds=trained.earlier_seconds,
    )


def _train_head(
    recipe: Recipe,
    dataset: Dataset,
    network: Backbone,
    context: LearnContext,
    checkpoint: Path,
    *,
    later_epochs: int,
) -> LearnResult:
    extractor = LayerFeatures(network, None, "mean")
    features = replace(
        dataset,
        train=_extract(recipe, extractor, dataset.train, context),
        validation=_extract(recipe, extractor, dataset.validation, context),
        test=dataset.test.take(slice(0)),
    )
    stage = Stage(later_epochs=later_epochs, head_only=True)
    learned = _train(recipe, features, HeadOnly(network), context, checkpoint, stage)
    network.head.load_state_dict(learned.network.head.state_dict())
    return replace(learned, network=network.cpu().eval(), data_digest=dataset.digest())


def _fit_head(recipe: Recipe, dataset: Dataset, context: LearnContext) -> LearnResult:
    head, classes = recipe.head, len(dataset.labels)
    extractor = build_extractor(recipe.network, head, recipe.geometry, classes)
    train, test = (_features(recipe, extractor, split, context) for split in (dataset.train, dataset.test))
    points = accuracy_curve(
        head, (train, dataset.train.labels), (test, dataset.test.labels), seed=recipe.training.seed
    )
    context.display.curve(points)
    fitted = FittedHead(head, train, dataset.train.labels)
    network = FittedHeadNetwork(
        extractor.cpu(), fitted.to_torch_module(train), embedding_size=train.shape[1], classes=classes
    )
    return LearnResult(network.eval(), dataset.digest(), curve=points, fitted_labels=fitted.predict(test))


def _extract(recipe: Recipe, extractor: LayerFeatures, split: Split, context: LearnContext) -> Split:
    """Replace the images of a split by features, (N, D) float32."""
    features = _features(recipe, extractor, split, context)
    # `HeadOnly` takes features where other networks take images.
    return Split(features, split.labels, split.names)  # type: ignore[arg-type]


def _features(recipe: Recipe, extractor: LayerFeatures, split: Split, context: LearnContext) -> Features:
    device = context.device.torch_device
    with explaining_out_of_memory("feature extraction", device, inference_advice(recipe)):
        return extract_features(
            extractor,
            split.images,
            name=f"{recipe.network.name} {extractor.name} {extractor.pooling}",
            device=device,
            cache=context.cache,
            on_progress=report_progress("features of", context.display, context.interrupts),
        )
