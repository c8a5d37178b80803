"""The sections of a recipe: every setting with its unit, bounds and meaning. Does not import torch.

One file, because it is the reference of a recipe, to be read from top to bottom.
"""

import difflib
import re
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from serving.bundle.manifest import Strict
from training.recipe.backbone_names import BACKBONES

Source = Literal["digits", "mnist", "fashion-mnist", "cifar10", "npz", "folder", "imagenet", "fake"]
OwnNetwork = Literal["lenet5", "conv2", "mlp", "alexnet", "allconv", "pneumonia", "fast"]
EMBEDDING = "embedding"  # head.layer: the features before the network's head
LOGITS = "logits"  # head.layer: the 1,000 outputs of a pretrained backbone
Width = Annotated[int, Field(ge=1, le=8192)]
Activation = Literal["relu", "leaky-relu", "elu", "gelu", "silu", "mish", "tanh", "sigmoid"]


class DataRecipe(Strict):
    """The images and their splits."""

    source: Source
    file: str | None = Field(
        default=None, description="npz: file below the data root; default: the only .npz file there"
    )
    labels: tuple[str, ...] = Field(default=(), description="npz: class names; default: their numbers")
    validation_fraction: float = Field(
        default=0.15,
        gt=0,
        le=0.5,
        description="fraction of the training images, if the source has no validation split; folder: the "
        "probability of each image, so that adding images moves none",
    )
    test_fraction: float = Field(
        default=0.2,
        gt=0,
        le=0.5,
        description="fraction of all images, if the source has no test split; folder: the probability of "
        "each image",
    )
    split_seed: int = Field(default=0, ge=0, lt=2**32, description="random seed of the splits")
    group_pattern: str | None = Field(
        default=None,
        description="regular expression searched in each image's name; images with the same first group (or "
        "match, if it has no group) stay in one split, for example those of one patient",
    )
    allow_groups_across_splits: bool = Field(
        default=False, description="whether a group may be in several splits that the source published"
    )
    near_duplicates: Literal["ignore", "report", "remove"] = Field(
        default="report",
        description="duplicates of test images in training and validation, and within a split, found by "
        "perceptual hash; remove: remove them from training and validation",
    )
    min_validation_images_per_class: int = Field(
        default=10, ge=1, description="with fewer, epochs are not comparable and the run is rejected"
    )
    strict: bool = Field(default=False, description="reject undecodable files instead of ignoring them")
    memory_limit_gib: float | None = Field(
        default=None,
        ge=0,
        description="folder, imagenet: stream decoded images from disk if they exceed this; default: half of "
        "the available memory. Does not change results",
    )
    download: bool = Field(default=False, description="download missing files to the data root")
    fake_images_per_class: int = Field(default=100, ge=10, le=10_000)
    fake_classes: int = Field(default=4, ge=2, le=100)

    @model_validator(mode="before")
    @classmethod
    def _without_removed_settings(cls, values: object) -> object:
        # Recipes, run folders and bundles of earlier versions have it. All folders are read by one rule now.
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if key != "val_is_test"}
        return values

    @field_validator("group_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a valid regular expression: {error}") from error
        return pattern


class NetworkRecipe(Strict):
    """The architecture. Unset values default to the network's."""

    name: str = Field(default="lenet5", description="one of our networks, or a torchvision backbone")
    weights: str = Field(
        default="random", description="backbones: random, torchvision (its best weights), or a file"
    )
    train_from: str = Field(
        default="all", description="backbones: all, head, or the name of the first trained layer"
    )
    activation: Activation | None = Field(
        default=None, description="activation function of all layers that have one"
    )
    maps: tuple[Width, ...] | None = Field(default=None, description="filters of each convolution, in order")
    hidden: tuple[Width, ...] | None = Field(default=None, description="units of each hidden dense layer")
    head_hidden: tuple[Width, ...] = Field(
        default=(),
        max_length=4,
        description="backbones: units of each hidden dense layer between the features and the output, each "
        "with ReLU; empty: a linear head",
    )
    kernel_size: int | None = Field(
        default=None, ge=1, le=15, description="side in pixels of all convolutions except 1x1"
    )
    batch_norm: bool | None = Field(
        default=None, description="batch norm after each convolution and hidden dense layer"
    )
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="dropout probability after each hidden dense layer; backbones: before each dense layer "
        "of the head",
    )
    residual: bool = Field(default=False, description="alexnet: residual blocks for the last convolutions")
    views: Literal[1, 2, 6] = Field(
        default=1,
        description="test-time augmentation inside the published graph: the features of several views are "
        "averaged. 2: the image and its mirror image; 6: both, also shifted by one pixel",
    )

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        known = (*get_args(OwnNetwork), *BACKBONES)
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0)
            raise ValueError(f"unknown network {name!r}; the nearest names are {', '.join(nearest)}")
        return name

    @model_validator(mode="after")
    def _weights_need_a_backbone(self) -> Self:
        if self.name not in BACKBONES and (self.weights, self.train_from) != ("random", "all"):
            raise ValueError(
                f"weights and train_from need a torchvision backbone, {self.name} is not one: remove them"
            )
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        # Only keys that no shipped recipe sets: `--set network.name=` must work with every recipe.
        for key in ("activation", "hidden", "kernel_size"):
            if self.name in BACKBONES and getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect on {self.name}, a torchvision backbone: remove it")
        if self.head_hidden and self.name not in BACKBONES:
            raise ValueError(
                f"head_hidden needs a torchvision backbone, {self.name} is not one: use network.hidden"
            )
        if self.residual and self.name != "alexnet":
            raise ValueError(f"residual applies to alexnet only, not to {self.name}: remove it")
        if self.name == "mlp" and self.kernel_size is not None:
            raise ValueError("kernel_size has no effect on mlp, which has no convolution: remove it")
        if self.hidden is not None and self.name in ("allconv", "fast"):
            raise ValueError(
                f"hidden has no effect on {self.name}, which has no hidden dense layer: remove it"
            )
        return self


class HeadRecipe(Strict):
    """Method few-shot: the classifier, and the layer that provides its features."""

    kind: Literal["linear-svm", "rbf-svm", "poly-svm", "logistic", "prototype"] = "linear-svm"
    layer: str = Field(
        default=EMBEDDING,
        description="embedding: the features before the network's head; logits: the 1,000 outputs of a "
        "pretrained backbone; or the name of any layer, for example features.12",
    )
    pooling: Literal["mean", "none"] = Field(
        default="mean", description="pooling of feature maps: mean over positions, or none to flatten"
    )
    scaling: Literal["none", "standard", "unit"] = Field(
        default="none",
        description="standard: mean 0 and standard deviation 1 per feature; unit: L2 norm 1 per image",
    )
    regularisation: float = Field(default=1.0, gt=0, description="scikit-learn's C: smaller is stronger")
    degree: int = Field(default=3, ge=2, le=6, description="degree of poly-svm")
    shots: tuple[int, ...] = Field(
        default=(1, 2, 5, 10, 20), description="training images per label, one per point of the curve"
    )
    draws: int = Field(default=50, ge=2, le=10_000, description="random subsets per point of the curve")


class AugmentationRecipe(Strict):
    """Random changes to training images that keep their label; drawn per image and epoch."""

    max_shift_px: int = Field(default=0, ge=0, le=64, description="maximum shift along each axis")
    max_rotation_degrees: float = Field(
        default=0.0, ge=0, le=180, description="maximum rotation in both directions"
    )
    max_zoom: float = Field(default=0.0, ge=0, lt=1, description="0.1: scaled by 0.9 to 1.1")
    min_crop_area: float = Field(
        default=1.0, gt=0, le=1, description="random resized crop of at least this fraction of the area"
    )
    affine_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="fraction of images that are rotated, zoomed or cropped; interpolation softens small "
        "images, and a network that whitens its input must also see sharp ones",
    )
    flip: Literal["none", "random", "alternating"] = Field(
        default="none",
        description="horizontal; alternating: random in the first epoch, then every other epoch",
    )
    vertical_flip: bool = Field(default=False, description="random vertical flip")
    edge: Literal["background", "reflect"] = Field(
        default="background", description="what fills the area outside the image"
    )
    brightness: float = Field(default=0.0, ge=0, lt=1, description="0.2: factor 0.8 to 1.2")
    contrast: float = Field(default=0.0, ge=0, lt=1, description="0.2: factor 0.8 to 1.2")
    saturation: float = Field(default=0.0, ge=0, le=1, description="0.2: factor 0.8 to 1.2")
    max_blur_px: float = Field(
        default=0.0, ge=0, le=16, description="maximum standard deviation of a Gaussian blur"
    )
    erasing: float = Field(default=0.0, ge=0, le=1, description="probability of a random grey rectangle")
    max_erased_area: float = Field(
        default=0.2, gt=0, le=0.5, description="maximum fraction of the image; the minimum is 0.02"
    )
    trivial: bool = Field(default=False, description="TrivialAugment: one random operation per image")
    mixup: float = Field(default=0.0, ge=0, le=10, description="alpha of the beta distribution; 0: off")
    cutmix: float = Field(
        default=0.0, ge=0, le=10, description="alpha; 0: off; with mixup, one of the two per batch, at random"
    )


class TrainingRecipe(Strict):
    """Optimizer, schedule and stopping."""

    epochs: int = Field(default=20, ge=1, le=10_000, description="maximum; early stopping may end before")
    head_epochs: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="backbones: epochs that train only the head first, on features computed once",
    )
    head_learning_rate: float = Field(default=3e-3, gt=0, le=100, description="peak, in head_epochs")
    batch_size: int = Field(default=64, ge=2, le=65_536, description="images per step, over all processes")
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = Field(
        default="adam",
        description="sgd: with Nesterov momentum; muon: for filters, with sgd for everything else",
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="peak")
    bias_rate_factor: float = Field(
        default=1.0, gt=0, le=1000, description="learning rate of biases and norms, relative"
    )
    head_rate_factor: float = Field(
        default=1.0, gt=0, le=1000, description="learning rate of the head's weights, relative"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd and muon")
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="weight decay; not applied to biases and norms"
    )
    schedule: Literal["constant", "cosine", "linear", "one-cycle", "step"] = Field(
        default="cosine", description="decay of the learning rate over all epochs; one-cycle: rises first"
    )
    warmup_epochs: float = Field(
        default=0.0, ge=0, description="the learning rate rises linearly from near zero"
    )
    step_epochs: int = Field(default=10, ge=1, description="step: epochs between two decays")
    step_factor: float = Field(default=0.1, gt=0, lt=1, description="step: factor of each decay")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="probability mass spread over all classes"
    )
    class_balance: Literal["none", "weights", "sampler"] = Field(
        default="none",
        description="weights: rare classes weigh more in the loss; sampler: they are drawn more often",
    )
    averaging: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay per step of the weights' exponential moving average; 0: off",
    )
    max_gradient_norm: float | None = Field(default=None, gt=0, description="gradient clipping by norm")
    patience: int = Field(
        default=5, ge=1, description="epochs without a lower validation loss before stopping"
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="the epoch whose weights are published; last: validation neither selects nor stops",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="precision of forward and backward passes; weights stay float32"
    )
    channels_last: bool = Field(default=False, description="memory layout of images and filters")
    cuda_graphs: bool = Field(
        default=True,
        description="GPU with --kernels fast: capture a step once and replay it; does not change results",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile: takes up to minutes at start; needs a C++ compiler (GPU: a C compiler)",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="random seed of weights, order, augmentation and dropout"
    )
    checkpoint_interval_steps: int = Field(
        default=500, ge=1, description="steps between checkpoints; each epoch also ends with one"
    )


class ChampionRecipe(Strict):
    """Limits of a new version against the one that it would replace. They do not change what is trained."""

    max_accuracy_loss: float = Field(
        default=0.015,
        gt=0,
        le=1,
        description="non-inferiority margin: the new version is promoted if, with 95 % confidence, its test "
        "accuracy is at most this much lower. A smaller margin needs more test images",
    )
    max_recall_loss: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="a label may lose this much recall; a proven larger loss refuses the new version",
    )
    max_relabelled: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="maximum share of images that the champion knows under another label: of all, or of "
        "those with one label, then or now (if at least 5 images, or all that a label had). With more, the "
        "new version is a candidate: the labels may be wrong",
    )
    max_champion_loss: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="maximum loss of the champion's accuracy on the compared images, against what it "
        "recorded on its own test images; twice that for the recall of one label (of at least 10 images then "
        "and now). With more, the new version is a candidate: the labels may be wrong. 1: not checked",
    )
    max_ece_rise: float = Field(
        default=0.03, ge=0, le=1, description="maximum rise of the calibration error in excess of chance"
    )
    max_latency_ratio: float = Field(
        default=2.0, gt=0, description="maximum time for one image, relative to the champion's"
    )
    max_size_ratio: float = Field(
        default=4.0, gt=0, description="maximum size of model.onnx, relative to the champion's"
    )
    max_drift: float = Field(
        default=0.25,
        gt=0,
        description="maximum population stability index of the data since the champion: shares of labels, "
        "and what the champion answers for the test images. 0.1 is a moderate change, 0.25 a large one",
    )


class VariantRecipe(Strict):
    """Other precisions of the exported file, each published with it if it is nearly as good."""

    precisions: tuple[Literal["int8", "fp16"], ...] = ("int8", "fp16")
    max_accuracy_drop: float = Field(
        default=0.005, ge=0, le=1, description="maximum loss of accuracy on the validation split"
    )
    min_same_labels: float = Field(
        default=0.99,
        ge=0,
        le=1,
        description="fraction of validation images with the label of the exported file",
    )
    min_int8_speedup: float = Field(
        default=1.05,
        gt=0,
        description="minimum speedup in CPU time, at batch 1 and 32: INT8 makes small networks slower",
    )
    max_fp16_range: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="maximum weight or activation as a fraction of FP16's 65,504; the rest is a margin "
        "for images that were not measured",
    )
    calibration_images: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="training images that INT8's ranges are calibrated on; fp16 uses 64 of training and test",
    )


class ReportRecipe(Strict):
    """The report of a run. Does not change its result."""

    images: Literal["all", "none"] = Field(
        default="all",
        description="images of the data in the report; none: for pictures of people or patients. File names "
        "are kept",
    )


class GateRecipe(Strict):
    """Limits that a version must meet to be published."""

    min_accuracy: float = Field(default=0.0, ge=0, le=1, description="minimum accuracy on the test split")
    min_balanced_accuracy: float = Field(
        default=0.0, ge=0, le=1, description="minimum mean recall of the labels"
    )
    min_auc: float = Field(default=0.0, ge=0, le=1, description="minimum area under the ROC curve")
    min_skill: float = Field(
        default=0.1,
        le=1,
        description="minimum share of the baseline's errors that the network avoids; the baseline always "
        "predicts the most frequent test label. 0: as good as the baseline, below 0: worse",
    )
    allow_zero_recall: bool = Field(
        default=False,
        description="whether a label with at least ten test images may have no correct prediction",
    )
    max_ece: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="maximum calibration error on the test split, in excess of chance",
    )
    max_parity_gap: float = Field(
        default=1e-4,
        gt=0,
        le=0.1,
        description="maximum probability difference between torch and ONNX Runtime",
    )
