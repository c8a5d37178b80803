"""`lenserve-train`: run, recipes, layers, ..., report, visualize. Imports torch only where needed.

One file, because a command is its options and the few lines that call the rest.
"""

import json
import os
import re
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import CliPositionalArg, NoDecode
from rich.console import Console

from serving.bundle.manifest import NAME_ALLOWED, NAME_PATTERN
from serving.bundle.stored_repository import open_repository
from serving.bundle.urls import DEFAULT_CACHE, DEFAULT_REPOSITORY, RepositoryCache, RepositoryLocation
from serving.commandline import (
    DONE,
    FAILED,
    Command,
    Commands,
    print_line,
    print_table,
    require_training,
    run_commands,
    stderr,
)
from serving.errors import UsageError
from serving.repository_option import named_in_errors
from serving.validation_errors import matching
from training.atomic_files import require_utf8, writing
from training.errors import GateFailed
from training.explain.kinds import Kind
from training.recipe import Recipe, known_classes, resolve, resolve_network, shipped_names
from training.recipe.measured import read_measured, record, shipped_recipe
from training.recipe.results import markdown_table
from training.recipe.sections import Source
from training.run.extension import is_shorter
from training.run.interrupts import Interrupts
from training.run.run_folder import RunFolder
from training.run.summary import RunSummary
from training.terminal_tables import (
    describe_recipe,
    layers_tree,
    recipes_table,
    scores_table,
    verification_table,
)

_Kernels = Literal["fast", "reproducible"]
_KERNELS = (
    "on a GPU: fast (TF32, the fastest algorithms; default) or reproducible (full FP32, deterministic where "
    "CUDA allows, no CUDA graphs); a CPU is always reproducible"
)

_DATA_ROOT = "directory of the data, for sources that read files"
_CACHE = "directory to keep decoded images in, such as runs/.cache; default: decode again, in memory"
_DEVICE = "auto, cpu, cuda or cuda:N"

_DEFAULT_CLASSES = 10  # of `layers`, where the recipe's data does not say how many there are

# pydantic-settings joins several --set by commas. A comma followed by `key=` separates two of them; any other
# comma belongs to a value.
_NEXT_OVERRIDE = re.compile(r",(?=\s*[A-Za-z_][A-Za-z0-9_.]*\s*=)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    commands: Commands = {
        "run": Run,
        "recipes": Recipes,
        "layers": Layers,
        "find-rate": FindRate,
        "evaluate": Evaluate,
        "verify": Verify,
        "report": Report,
        "visualize": Visualize,
    }
    summary = "Train image classifiers and publish them as bundles."
    return run_commands("lenserve-train", summary, commands, sys.argv[1:] if argv is None else argv)


class _JsonCommand(Command):
    """A command that can print its result as one JSON object."""

    as_json: bool = Field(default=False, alias="json", description="print the result as one JSON object")

    @abstractmethod
    def run(self) -> int:
        """Run the command and return its exit code."""

    def _end(self, result: dict[str, Any]) -> None:
        if self.as_json:
            print_line(json.dumps(result))


class _RecipeCommand(_JsonCommand):
    """A command that takes a recipe and overrides."""

    recipe: CliPositionalArg[str] = Field(description="name of a shipped recipe, or path to a .toml file")
    overrides: Annotated[list[str], NoDecode] = Field(
        default=[],
        alias="set",
        description="SECTION.KEY=VALUE in place of the recipe's value; may be repeated",
    )

    @field_validator("overrides", mode="before")
    @classmethod
    def _split_overrides(cls, value: object) -> object:
        return _NEXT_OVERRIDE.split(value) if isinstance(value, str) and value else value


class Run(_RecipeCommand):
    """Train a recipe, prove the exported network, and publish it."""

    example: ClassVar[str] = "lenserve-train run transfer --data-root photos --repository repository"

    repository: RepositoryLocation = Field(
        default=DEFAULT_REPOSITORY, description="directory to publish in, or s3://bucket/models"
    )
    repository_cache: RepositoryCache = DEFAULT_CACHE
    name: Annotated[str, matching(NAME_PATTERN, NAME_ALLOWED)] | None = Field(
        default=None, description="name to publish the model under; default: the recipe's name"
    )
    data_root: Path | None = Field(default=None, description=_DATA_ROOT)
    run_dir: Path | None = Field(
        default=None, description="directory of this run's checkpoints and report; default: runs/<recipe>"
    )
    resume: bool = Field(
        default=False,
        description="continue an interrupted run; with a larger training.epochs, extend a finished one",
    )
    device: str = Field(default="auto", description=_DEVICE)
    kernels: _Kernels | None = Field(default=None, description=_KERNELS)
    log: list[Literal["tensorboard", "mlflow"]] = Field(
        default=[], description="also write the run's history there; may be repeated"
    )
    force: bool = Field(
        default=False,
        description="promote the version even if it is worse than the one before; the manifest records it",
    )
    record: bool = Field(
        default=False,
        description="record the result in recipes/measured.json; allows no --set except network.weights=FILE",
    )

    def run(self) -> int:
        """Run the command and return its exit code."""
        recipe = resolve(self.recipe, self.overrides)
        recorded = shipped_recipe(self.recipe, self.overrides) if self.record else None
        require_utf8(Path(self.repository), "--repository")
        require_utf8(self._run_dir(recipe), "--run-dir")
        if self.record and self.resume:
            self._check_whole(recipe)
        require_training()
        interrupts = Interrupts()
        with interrupts.catching_signals():
            summary = self._train(recipe, interrupts)
        if summary is None:
            return DONE  # the leading process of this run reports
        if recorded is not None and summary.verdict == "published":
            self._record(recorded, summary.seconds)
        self._end(summary.model_dump(exclude={"refusal"}))
        if summary.refusal is not None:
            raise GateFailed(f"{summary.refusal}; the report is in {self._run_dir(recipe) / 'report'}")
        return DONE

    def _train(self, recipe: Recipe, interrupts: Interrupts) -> RunSummary | None:
        # OpenMP threads that spin while they wait make training ten times slower next to one other busy
        # process; sleeping ones cost nothing measurable. Read once, when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        # Importing torch takes seconds, which `recipes` and a wrong option should not cost.
        from training.devices import device, process_group
        from training.run import job
        from training.run.display import Display

        place = process_group.from_torchrun()
        chosen = device.choose(self.device, place.local_rank, self.kernels)
        with process_group.join(place, chosen.torch_device) as group:
            display = Display(stderr if group.is_main else Console(quiet=True))
            task = job.Job(
                repository=open_repository(self.repository, self.repository_cache, must_exist=False),
                model=self.name or recipe.name,
                run_dir=self._run_dir(recipe),
                data_root=self.data_root,
                device=chosen,
                display=display,
                interrupts=interrupts,
                resume=self.resume,
                group=group,
                loggers=tuple(self.log),
                force=self.force,
            )
            if not group.is_main:
                job.follow(recipe, task)
                return None
            with named_in_errors(self.repository):
                summary = job.train_and_evaluate(recipe, task)
        if summary.path is not None:
            display.published(summary.path, self.repository, summary.metrics, summary.seconds)
            if summary.gate == "candidate":
                display.candidate(self.repository, summary.model, summary.version or 0)
        return summary

    def _check_whole(self, recipe: Recipe) -> None:
        folder = RunFolder(self._run_dir(recipe))
        if folder.extension.exists() or is_shorter(folder, recipe):
            raise UsageError(
                f"--record keeps results of whole runs, and the run in {folder.path} continues a shorter "
                "one: run without --resume"
            )

    def _record(self, shipped: Recipe, seconds: float) -> None:
        from training.recorded_files import read_recorded
        from training.report.metrics import METRICS_FILE, Metrics

        written = self._run_dir(shipped) / "report" / METRICS_FILE
        metrics = read_recorded(written, Metrics, "the result was not recorded; run the recipe again")
        record(shipped.name, metrics.as_measured(shipped, seconds))

    def _run_dir(self, recipe: Recipe) -> Path:
        return self.run_dir or Path("runs") / recipe.name


class Recipes(_JsonCommand):
    """List the recipes with their stated and measured results."""

    example: ClassVar[str] = "lenserve-train recipes"

    markdown: bool = Field(default=False, description="print only the results, as docs/results.md has them")

    def run(self) -> int:
        """Run the command and return its exit code."""
        measured = read_measured()
        recipes = [resolve(name) for name in shipped_names()]
        if self.markdown:
            print_line(markdown_table(recipes, measured))
            return DONE
        if self.as_json:
            self._end({"recipes": [describe_recipe(recipe, measured.get(recipe.name)) for recipe in recipes]})
        else:
            print_table(recipes_table(recipes, measured))
        return DONE


class Layers(_RecipeCommand):
    """List the layers of a recipe's network: shapes, parameters, receptive fields, and their arithmetic."""

    example: ClassVar[str] = "lenserve-train layers resnet50"

    classes: int | None = Field(
        default=None, ge=2, le=100_000, description="number of labels; default: the recipe's data, or 10"
    )

    def run(self) -> int:
        """Run the command and return its exit code."""
        require_training()
        from training.report.layer_summary import list_layers

        recipe = resolve_network(self.recipe, self.overrides)
        classes = self.classes or known_classes(recipe) or _DEFAULT_CLASSES
        shape_alone = recipe.network.model_copy(update={"weights": "random"})  # reads and downloads nothing
        layers = list_layers(shape_alone, recipe.geometry, classes)
        self._end(
            {
                "network": recipe.network.name,
                "input": recipe.geometry.shape,
                "classes": classes,
                "parameters": sum(layer.parameters for layer in layers if "." not in layer.name),
                "layers": [asdict(layer) for layer in layers],
            }
        )
        if not self.as_json:
            print_table(layers_tree(recipe, classes, layers))
        return DONE


class FindRate(_RecipeCommand):
    """Train with rising learning rates, plot the loss, and suggest a rate."""

    example: ClassVar[str] = "lenserve-train find-rate cifar10-fast --data-root data"

    data_root: Path | None = Field(default=None, description=_DATA_ROOT)
    cache: Path | None = Field(default=None, description=_CACHE)
    device: str = Field(default="auto", description=_DEVICE)
    kernels: _Kernels | None = Field(default=None, description=_KERNELS)
    steps: int = Field(default=100, ge=20, le=10_000, description="total number of training steps")
    lowest: float = Field(
        default=1e-5, gt=0, allow_inf_nan=False, description="learning rate of the first step"
    )
    highest: float = Field(
        default=10.0, gt=0, allow_inf_nan=False, description="learning rate of the last step"
    )
    picture: Path = Field(
        default=Path("find-rate.png"), description="file for the plot of loss over learning rate"
    )

    def run(self) -> int:
        """Run the command and return its exit code."""
        if self.lowest >= self.highest:
            raise UsageError(f"--lowest must be below --highest, got {self.lowest:g} and {self.highest:g}")
        recipe = resolve(self.recipe, self.overrides)
        if recipe.method != "train":
            raise UsageError(f"recipe {recipe.name} has no learning rate: its method is {recipe.method}")
        require_training()
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from training import data
        from training.devices import device
        from training.devices.compilers import check_compiler
        from training.devices.kernels import reporting_nondeterminism
        from training.learning import find_rate
        from training.run.display import Display
        from training.run.progress import report_progress

        find_rate.check_picture(self.picture)
        data.refuse_unread_root(recipe.data, self.data_root)
        data.require_root(recipe.data, self.data_root)
        display, interrupts = Display(stderr), Interrupts("begin again")
        chosen = device.choose(self.device, kernels=self.kernels)
        check_compiler(recipe, chosen.torch_device)
        device.prepare(chosen)
        display.note(chosen.describe())
        progress = report_progress("decoded", display, interrupts)
        with interrupts.catching_signals(), reporting_nondeterminism(display.warning):
            dataset, _ = data.load(
                recipe.data, recipe.geometry, self.data_root, self.cache, on_progress=progress
            )
            result = find_rate.find_rate(
                recipe,
                dataset,
                chosen.torch_device,
                display,
                interrupts,
                lowest=self.lowest,
                highest=self.highest,
                steps=self.steps,
            )
        current = recipe.training.learning_rate
        with writing(self.picture, "choose another --picture"):
            find_rate.draw_range_test(result, current).savefig(self.picture, dpi=120)
        self._end({"suggestion": result.suggestion, "rates": result.rates, "losses": result.losses})
        display.note(
            f"the loss falls fastest at rate {result.suggestion:.2g}, the recipe has {current:.2g}; "
            f"see {self.picture}; try --set training.learning_rate={result.suggestion:.2g}"
        )
        return DONE


class Evaluate(_JsonCommand):
    """Evaluate a published bundle on a test split in ONNX Runtime."""

    example: ClassVar[str] = "lenserve-train evaluate repository/transfer/1 --data-root photos"

    bundle_dir: CliPositionalArg[Path] = Field(description="<repository>/<model>/<version>")
    data: Source | None = Field(
        default=None, description="source of the test split; default: the source of the bundle's recipe"
    )
    data_root: Path | None = Field(default=None, description=_DATA_ROOT)
    cache: Path | None = Field(default=None, description=_CACHE)

    def run(self) -> int:
        """Run the command and return its exit code."""
        require_training()
        from training.evaluation.evaluate_bundle import evaluate_bundle

        result = evaluate_bundle(self.bundle_dir, self.data, self.data_root, self.cache)
        for note in result.notes:
            stderr.print(note, markup=False)
        self._end(result.model_dump(mode="json"))
        if not self.as_json:
            print_table(scores_table(result.labels, result.metrics))
        return DONE


class Verify(_JsonCommand):
    """Repeat the proof of a published bundle: digests, golden examples, scores on the test split."""

    example: ClassVar[str] = "lenserve-train verify repository/transfer/1 --data-root photos"

    bundle_dir: CliPositionalArg[Path] = Field(description="<repository>/<model>/<version>")
    data_root: Path | None = Field(default=None, description=_DATA_ROOT)
    cache: Path | None = Field(default=None, description=_CACHE)

    def run(self) -> int:
        """Run the command and return its exit code."""
        require_training()
        from training.evaluation.verify_bundle import verify_bundle

        result = verify_bundle(self.bundle_dir, self.data_root, self.cache)
        self._end(result.model_dump(mode="json"))
        if not self.as_json:
            print_table(verification_table(result.checks, result.not_checked, complete=result.complete))
        for check in result.checks:
            if not check.passed:
                stderr.print(f"lenserve-train verify: {check.name}: {check.detail}", markup=False)
        return DONE if result.holds else FAILED


class Report(_JsonCommand):
    """Make the report of a published bundle again; with its data, also the pictures of images."""

    example: ClassVar[str] = "lenserve-train report repository/transfer/1 --data-root photos"

    bundle_dir: CliPositionalArg[Path] = Field(description="<repository>/<model>/<version>")
    data_root: Path | None = Field(default=None, description=_DATA_ROOT)
    cache: Path | None = Field(default=None, description=_CACHE)
    output: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("output", "o"),
        description="directory to write to; default: report-<model>-<version>",
    )

    def run(self) -> int:
        """Run the command and return its exit code."""
        require_training()
        from training.atomic_files import writing
        from training.devices import device
        from training.report.gather import evidence_of_bundle
        from training.report.report import PAGE_FILE, write_report
        from training.report.why_section import twin_or_reason, why_section

        evidence, network = evidence_of_bundle(
            self.bundle_dir, self.data_root, self.cache, machine=device.choose("cpu").machine
        )
        folder = self.output or Path(f"report-{evidence.metrics.model}-{evidence.version}")
        if folder.resolve().is_relative_to(self.bundle_dir.resolve()):
            raise UsageError(
                f"--output {folder} is in the bundle, which must not change: name another directory"
            )
        with writing(folder):
            why = why_section(evidence, *twin_or_reason(self.bundle_dir))
            write_report(folder, evidence, network=network, why=[why])
        self._end(
            {"path": str(folder / PAGE_FILE), "model": evidence.metrics.model, "version": evidence.version}
        )
        if not self.as_json:
            print_line(str(folder / PAGE_FILE))
        return DONE


class Visualize(_JsonCommand):
    """Draw one picture of a published bundle: what it predicts, what it looks at, what it has learned."""

    example: ClassVar[str] = "lenserve-train visualize occlusion repository/transfer/1 --image photo.jpg"

    kind: CliPositionalArg[Kind] = Field(
        description="images, predictions, quadrants, mistakes, breakdown, confusion, curves, occlusion, "
        "activations, filters, features, or kernels, which needs no bundle"
    )
    bundle_dir: CliPositionalArg[Path | None] = Field(
        default=None, description="<repository>/<model>/<version>"
    )
    output: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("output", "o"),
        description="file for the picture; default: <kind>.png",
    )
    layer: str | None = Field(
        default=None,
        description="occlusion (Grad-CAM), activations, filters, features: name of a layer, as `layers` "
        "prints it; default: an overview",
    )
    image: Path | None = Field(
        default=None,
        description="occlusion, features, kernels: an image file; default: test images, a golden example, a "
        "photograph of a flower",
    )
    data: Source | None = Field(
        default=None, description="source of the test split; default: the source of the bundle's recipe"
    )
    data_root: Path | None = Field(default=None, description=_DATA_ROOT)
    cache: Path | None = Field(default=None, description=_CACHE)
    padding: int = Field(default=1, ge=0, le=64, description="kernels: pixels of zeros on every side")
    stride: int = Field(default=1, ge=1, le=64, description="kernels: pixels between two positions")

    def run(self) -> int:
        """Run the command and return its exit code."""
        require_training()
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from training.explain.kernels import Window
        from training.explain.visualize import Wanted, visualize

        picture = visualize(
            Wanted(
                kind=self.kind,
                bundle_dir=self.bundle_dir,
                layer=self.layer,
                image=self.image,
                source=self.data,
                data_root=self.data_root,
                cache=self.cache,
                window=Window(self.padding, self.stride),
            )
        )
        path = self.output or Path(f"{self.kind}.png")
        try:
            path.write_bytes(picture.png)
        except OSError as error:
            raise UsageError(f"--output {path} cannot be written: {error.strerror}") from error
        self._end({"picture": str(path), "caption": picture.caption, "alt": picture.alt})
        if not self.as_json:
            print_line(f"{path}: {picture.caption}")
        return DONE
