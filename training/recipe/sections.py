"""The sections of a recipe: every setting with its unit, its bounds and its reason. Knows no torch."""

import difflib
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from serving.bundle.manifest import Strict
from training.recipe.backbone_names import BACKBONES

Source = Literal["digits", "mnist", "fashion-mnist", "cifar10", "npz", "folder", "imagenet", "fake"]
OwnNetwork = Literal["lenet5", "conv2", "alexnet", "allconv", "pneumonia", "fast"]
EMBEDDING = "embedding"  # head.layer: the network's own features before its head
Width = Annotated[int, Field(ge=1, le=8192)]
Activation = Literal["relu", "leaky-relu", "elu", "gelu", "silu", "mish", "tanh", "sigmoid"]


class DataRecipe(Strict):
    """Which images, and how they are divided."""

    source: Source
    val_is_test: bool = Field(
        default=False,
        description="folder: without `test`, `val` is the test split, and validation is split off training",
    )
    file: str | None = Field(
        default=None, description="npz: the file below the data root; default: the only .npz in it"
    )
    labels: tuple[str, ...] = Field(
        default=(), description="npz: names of the classes; default: their numbers"
    )
    validation_fraction: float = Field(
        default=0.15, gt=0, le=0.5, description="of the training images, where the source has no such split"
    )
    test_fraction: float = Field(
        default=0.2, gt=0, le=0.5, description="of all images, where the source has no such split"
    )
    split_seed: int = Field(default=0, ge=0, lt=2**32, description="which images go where")
    group_pattern: str | None = Field(
        default=None,
        description="regular expression found in each image's name; images with an equal first group, "
        "or whole match where it has none, stay in one split: those of one patient, say",
    )
    near_duplicates: Literal["ignore", "report", "remove"] = Field(
        default="report",
        description="of test images in training and validation, and within splits, by perceptual hash; "
        "remove: from training and validation",
    )
    min_validation_images_per_class: int = Field(
        default=10, ge=1, description="fewer cannot tell one epoch from another: the run is refused"
    )
    strict: bool = Field(default=False, description="refuse undecodable files instead of leaving them out")
    memory_limit_gib: float | None = Field(
        default=None,
        ge=0,
        description="folder, imagenet: decoded images of more than this are streamed from disk; "
        "default: half of the available memory. It changes no result",
    )
    download: bool = Field(default=False, description="let torchvision fetch missing files to the data root")
    fake_images_per_class: int = Field(default=100, ge=10, le=10_000)
    fake_classes: int = Field(default=4, ge=2, le=100)


class NetworkRecipe(Strict):
    """The architecture: what is not said here is the network's own."""

    name: str = Field(default="lenet5", description="one of our own, or torchvision's name of a backbone")
    weights: str = Field(
        default="random", description="of a backbone: random, torchvision (its best ones), or a file"
    )
    train_from: str = Field(
        default="all", description="of a backbone: all, head, or the first layer that is trained"
    )
    activation: Activation | None = Field(default=None, description="after each layer that has one")
    maps: tuple[Width, ...] | None = Field(default=None, description="filters of each convolution, in order")
    hidden: tuple[Width, ...] | None = Field(default=None, description="units of each hidden dense layer")
    kernel_size: int | None = Field(
        default=None, ge=1, le=15, description="pixels a side, of every convolution that is not 1x1"
    )
    batch_norm: bool | None = Field(default=None, description="after each convolution and hidden dense layer")
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="probability, after each hidden dense layer that has one"
    )
    residual: bool = Field(default=False, description="alexnet: residual blocks for the last convolutions")
    views: Literal[1, 2, 6] = Field(
        default=1,
        description="of each image whose predictions are averaged, inside the published graph: "
        "2 adds the mirror image, 6 adds both moved by a pixel",
    )

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        known = (*get_args(OwnNetwork), *BACKBONES)
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0)
            raise ValueError(f"there is no network {name!r}, the nearest names are {', '.join(nearest)}")
        return name

    @model_validator(mode="after")
    def _only_backbones_are_pretrained(self) -> Self:
        if self.name not in BACKBONES and (self.weights, self.train_from) != ("random", "all"):
            raise ValueError(
                f"network.weights and network.train_from are for backbones, and {self.name} is not one"
            )
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        # Not of all keys: those that shipped recipes set would stand in the way of `--set network.name=`.
        for key in ("activation", "hidden", "kernel_size"):
            if self.name in BACKBONES and getattr(self, key) is not None:
                raise ValueError(f"network.{key} is of our own networks, {self.name} is torchvision's")
        if self.residual and self.name != "alexnet":
            raise ValueError(f"network.residual is of alexnet, not of {self.name}")
        if self.hidden is not None and self.name in ("allconv", "fast"):
            raise ValueError(f"network.hidden has no effect: {self.name} has no hidden dense layer")
        return self


class HeadRecipe(Strict):
    """Of method few-shot: what is fitted on the features of which layer."""

    kind: Literal["linear-svm", "rbf-svm", "poly-svm", "logistic", "prototype"] = "linear-svm"
    layer: str = Field(default=EMBEDDING, description="any layer's name, features.12 say; or embedding")
    pooling: Literal["mean", "none"] = Field(
        default="mean", description="of maps: their means, or every value"
    )
    scaling: Literal["none", "standard", "unit"] = Field(
        default="none",
        description="standard: each feature's mean 0 and deviation 1; unit: each image's length 1",
    )
    regularisation: float = Field(default=1.0, gt=0, description="scikit-learn's C: less is stronger")
    degree: int = Field(default=3, ge=2, le=6, description="of poly-svm")
    shots: tuple[int, ...] = Field(
        default=(1, 2, 5, 10, 20), description="training images of each label at which the curve is drawn"
    )
    draws: int = Field(default=50, ge=2, le=10_000, description="random choices of images at each point")


class AugmentationRecipe(Strict):
    """Random changes to training images that leave their meaning; each image draws its own, each time."""

    max_shift_px: int = Field(default=0, ge=0, le=64, description="moved by up to this much, each axis")
    max_rotation_degrees: float = Field(default=0.0, ge=0, le=180, description="either way")
    max_zoom: float = Field(default=0.0, ge=0, lt=1, description="0.1: 0.9 to 1.1 times as large")
    min_crop_area: float = Field(
        default=1.0, gt=0, le=1, description="a random part of this share of the area or more, enlarged"
    )
    affine_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="of the images that are turned, zoomed or cropped; that softens small images, and a "
        "network that whitens them must see sharp ones too",
    )
    flip: Literal["none", "random", "alternating"] = Field(
        default="none",
        description="left to right; alternating: by a coin in the first epoch, then every other epoch",
    )
    vertical_flip: bool = Field(default=False, description="top to bottom, by a coin")
    edge: Literal["background", "reflect"] = Field(
        default="background", description="what comes in from outside"
    )
    brightness: float = Field(default=0.0, ge=0, lt=1, description="0.2: 0.8 to 1.2 times as bright")
    contrast: float = Field(default=0.0, ge=0, lt=1, description="0.2: 0.8 to 1.2 times the contrast")
    saturation: float = Field(default=0.0, ge=0, le=1, description="0.2: 0.8 to 1.2 times the colour")
    max_blur_px: float = Field(
        default=0.0, ge=0, le=16, description="softened by a Gaussian of up to this standard deviation"
    )
    erasing: float = Field(default=0.0, ge=0, le=1, description="probability of a grey rectangle")
    max_erased_area: float = Field(default=0.2, gt=0, le=0.5, description="share of the image, 0.02 at least")
    trivial: bool = Field(default=False, description="TrivialAugment: one operation of random strength each")
    mixup: float = Field(default=0.0, ge=0, le=10, description="alpha of its beta distribution; 0: off")
    cutmix: float = Field(default=0.0, ge=0, le=10, description="alpha; with mixup, a coin for each batch")


class TrainingRecipe(Strict):
    """The optimisation."""

    epochs: int = Field(default=20, ge=1, le=10_000, description="at most; early stopping may end before")
    head_epochs: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="of a backbone: first the head alone, on features computed once",
    )
    head_learning_rate: float = Field(
        default=3e-3, gt=0, le=100, description="of head_epochs, at its highest"
    )
    batch_size: int = Field(default=64, ge=2, le=65_536, description="images a step, over all processes")
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = Field(
        default="adam", description="sgd: with Nesterov momentum; muon: for filters, sgd for all else"
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="at its highest")
    bias_rate_factor: float = Field(
        default=1.0, gt=0, le=1000, description="of biases and norms, times the learning rate"
    )
    head_rate_factor: float = Field(
        default=1.0, gt=0, le=1000, description="of the head's weights, times the learning rate"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd and muon")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="of weights, not of biases and norms")
    schedule: Literal["constant", "cosine", "linear", "one-cycle", "step"] = Field(
        default="cosine", description="how the rate falls over all epochs; one-cycle: rises first"
    )
    warmup_epochs: float = Field(default=0.0, ge=0, description="in which the rate rises from near zero")
    step_epochs: int = Field(default=10, ge=1, description="step: epochs between two falls")
    step_factor: float = Field(default=0.1, gt=0, lt=1, description="step: what a fall leaves")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share given to all classes alike")
    class_balance: Literal["none", "weights", "sampler"] = Field(
        default="none", description="rare classes count more in the loss, or are drawn more often"
    )
    averaging: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the weights' moving average, a step; 0: off"
    )
    max_gradient_norm: float | None = Field(default=None, gt=0, description="longer ones are scaled down")
    patience: int = Field(
        default=5, ge=1, description="epochs without a lower validation loss before stopping"
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="weights of which epoch; last: validation chooses nothing, and stops nothing",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the passes forward and back; weights stay float32"
    )
    channels_last: bool = Field(default=False, description="memory order of images and filters")
    cuda_graphs: bool = Field(
        default=True,
        description="on a GPU with --kernels fast: a step is captured once and replayed; changes no result",
    )
    compile: bool = Field(
        default=False,
        description="by torch.compile: takes up to minutes at the start; needs a compiler, C++ or on a GPU C",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="weights, order, augmentation and dropout")
    checkpoint_interval_steps: int = Field(
        default=500, ge=1, description="steps between checkpoints within an epoch; each epoch ends with one"
    )


class VariantRecipe(Strict):
    """Other precisions of the exported file: each is published with it, where it is nearly as good."""

    precisions: tuple[Literal["int8", "fp16"], ...] = ("int8", "fp16")
    max_accuracy_drop: float = Field(default=0.005, ge=0, le=1, description="on the test split")
    min_same_labels: float = Field(
        default=0.99, ge=0, le=1, description="as the exported file, on the test split"
    )
    min_int8_speedup: float = Field(
        default=1.05, gt=0, description="in CPU time, at batch 1 and 32: small networks get slower by it"
    )
    max_fp16_range: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="of FP16's 65,504, what any weight or activation may reach: images to come reach further",
    )
    calibration_images: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="training images that tell the range of every value; fp16 takes 64 of both splits",
    )


class GateRecipe(Strict):
    """What a version must show before it is published."""

    min_accuracy: float = Field(default=0.0, ge=0, le=1, description="on the test split")
    min_balanced_accuracy: float = Field(default=0.0, ge=0, le=1, description="mean recall of the labels")
    min_auc: float = Field(default=0.0, ge=0, le=1, description="area under the ROC curve")
    max_ece: float = Field(default=0.1, gt=0, le=1, description="calibration error on the test split")
    max_parity_gap: float = Field(
        default=1e-4, gt=0, le=0.1, description="of any probability between torch and ONNX Runtime"
    )
