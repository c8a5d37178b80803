"""`lenserve-train`: run, recipes, layers, find-rate, evaluate. Torch comes with what a command calls."""

import json
import os
import re
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import CliPositionalArg, NoDecode
from rich.console import Console

from serving.bundle import Repository
from serving.bundle.manifest import NAME_PATTERN
from serving.commandline import DONE, Command, Commands, print_line, require_training, run_commands, stderr
from training.errors import GateFailed
from training.recipe import Recipe, known_classes, resolve, resolve_network, shipped_names
from training.recipe.measured import read_measured, record, shipped_recipe
from training.recipe.results import markdown_table
from training.recipe.sections import Source
from training.run.interrupts import Interrupts
from training.run.summary import RunSummary
from training.tables import describe_recipe, layers_tree, recipes_table, scores_table

_Kernels = Literal["fast", "reproducible"]
_KERNELS = (
    "of a GPU: fast (TF32, the fastest algorithms; default) or reproducible (full FP32, deterministic where "
    "CUDA allows, no CUDA graphs); a CPU is always reproducible"
)

_USUAL_CLASSES = 10  # where nothing says how many there are
_PIPE_WIDTH = 160  # letters

# The command line joins several --set by commas. A comma followed by `key=` starts the next one; any other
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
    }
    summary = "Train image classifiers and publish them as bundles."
    return run_commands("lenserve-train", summary, commands, sys.argv[1:] if argv is None else argv)


class _JsonCommand(Command):
    """A command that can end in one JSON object on stdout."""

    as_json: bool = Field(default=False, alias="json", description="end in one JSON object on stdout")

    @abstractmethod
    def run(self) -> int:
        """Do the work and return the exit code."""

    def _end(self, result: dict[str, Any]) -> None:
        if self.as_json:
            print_line(json.dumps(result))


class _RecipeCommand(_JsonCommand):
    """A command that takes a recipe and overrides."""

    recipe: CliPositionalArg[str] = Field(description="name of a shipped recipe, or path of a .toml file")
    overrides: Annotated[list[str], NoDecode] = Field(
        default=[],
        alias="set",
        description="section.key=value, instead of what the recipe says; may be repeated",
    )

    @field_validator("overrides", mode="before")
    @classmethod
    def _split_overrides(cls, value: object) -> object:
        return _NEXT_OVERRIDE.split(value) if isinstance(value, str) and value else value


class Run(_RecipeCommand):
    """Train by a recipe, prove the result, publish it."""

    repository: Path = Field(default=Path("repository"), description="where to publish")
    name: str | None = Field(
        default=None,
        pattern=f"^{NAME_PATTERN.pattern}$",
        description="to publish the model under; default: the recipe's name",
    )
    data_root: Path | None = Field(
        default=None, description="folder of the data, for sources that read files"
    )
    run_dir: Path | None = Field(
        default=None, description="checkpoints and report of this run; default: runs/<recipe>"
    )
    resume: bool = Field(default=False, description="go on where an interrupted run stopped")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    kernels: _Kernels | None = Field(default=None, description=_KERNELS)
    log: list[Literal["tensorboard", "mlflow"]] = Field(
        default=[], description="write the history there too; may be repeated"
    )
    record: bool = Field(
        default=False,
        description="keep the result in recipes/measured.json; no --set but of network.weights=FILE",
    )

    def run(self) -> int:
        """Do the work and return the exit code."""
        recipe = resolve(self.recipe, self.overrides)
        recorded = shipped_recipe(self.recipe, self.overrides) if self.record else None
        require_training()
        interrupts = Interrupts()
        with interrupts.catching_signals():
            summary = self._train(recipe, interrupts)
        if summary is None:
            return DONE  # another process of this run leads, and speaks
        if recorded is not None and summary.verdict == "published":
            self._record(recorded, summary.seconds)
        self._end(summary.model_dump(exclude={"refusal"}))
        if summary.refusal is not None:
            raise GateFailed(f"{summary.refusal}; the report is in {self._run_dir(recipe) / 'report'}")
        return DONE

    def _train(self, recipe: Recipe, interrupts: Interrupts) -> RunSummary | None:
        # OpenMP's threads would spin while they wait for each other. Beside one other busy process that makes
        # training ten times slower; asleep they cost nothing measurable. Read once, when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        # torch takes seconds to import, which `recipes` and a wrong option should not cost.
        from training.devices import device, process_group
        from training.run import job
        from training.run.display import Display

        place = process_group.from_torchrun()
        chosen = device.choose(self.device, place.local_rank, self.kernels)
        with process_group.join(place, chosen.torch_device) as group:
            display = Display(stderr if group.is_main else Console(quiet=True))
            task = job.Job(
                repository=Repository(self.repository),
                model=self.name or recipe.name,
                run_dir=self._run_dir(recipe),
                data_root=self.data_root,
                device=chosen,
                display=display,
                interrupts=interrupts,
                resume=self.resume,
                group=group,
                loggers=tuple(self.log),
            )
            if not group.is_main:
                job.follow(recipe, task)
                return None
            summary = job.train_and_evaluate(recipe, task)
        if summary.path is not None:
            display.published(Path(summary.path), self.repository, summary.metrics, summary.seconds)
        return summary

    def _record(self, shipped: Recipe, seconds: float) -> None:
        from training.report.metrics import METRICS_FILE, Metrics

        written = self._run_dir(shipped) / "report" / METRICS_FILE
        metrics = Metrics.model_validate_json(written.read_text(encoding="utf-8"))
        record(shipped.name, metrics.as_measured(shipped, seconds))

    def _run_dir(self, recipe: Recipe) -> Path:
        return self.run_dir or Path("runs") / recipe.name


class Recipes(_JsonCommand):
    """List the recipes, with the result that each states and the one that was measured."""

    markdown: bool = Field(default=False, description="only the results, as docs/results.md has them")

    def run(self) -> int:
        """Do the work and return the exit code."""
        measured = read_measured()
        recipes = [resolve(name) for name in shipped_names()]
        if self.markdown:
            print_line(markdown_table(recipes, measured))
            return DONE
        if self.as_json:
            self._end({"recipes": [describe_recipe(recipe, measured.get(recipe.name)) for recipe in recipes]})
        else:
            _for_people().print(recipes_table(recipes, measured))
        return DONE


class Layers(_RecipeCommand):
    """List every layer of a recipe's network: name, output shape, parameters."""

    classes: int | None = Field(
        default=None, ge=2, le=100_000, description="labels; default: those of the recipe's data, or 10"
    )

    def run(self) -> int:
        """Do the work and return the exit code."""
        require_training()
        from training.report.layer_summary import list_layers

        recipe = resolve_network(self.recipe, self.overrides)
        classes = self.classes or known_classes(recipe) or _USUAL_CLASSES
        shape_alone = recipe.network.model_copy(update={"weights": "random"})  # nothing to read or fetch
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
            _for_people().print(layers_tree(recipe, classes, layers))
        return DONE


class FindRate(_RecipeCommand):
    """Try rising learning rates on a recipe, and draw the loss over them."""

    data_root: Path | None = Field(
        default=None, description="folder of the data, for sources that read files"
    )
    cache: Path | None = Field(
        default=None,
        description="folder of decoded images, runs/.cache say; default: decoded anew, in memory",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    kernels: _Kernels | None = Field(default=None, description=_KERNELS)
    steps: int = Field(default=100, ge=20, le=10_000, description="of training, in all")
    picture: Path = Field(default=Path("find-rate.png"), description="where to draw the loss over the rate")

    def run(self) -> int:
        """Do the work and return the exit code."""
        recipe = resolve(self.recipe, self.overrides)
        require_training()
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from training import data
        from training.devices import device
        from training.devices.compilers import check_compiler
        from training.devices.kernels import reporting_nondeterminism
        from training.learning import find_rate
        from training.run.display import Display
        from training.run.progress import report_progress

        display, interrupts = Display(stderr), Interrupts("begin anew")
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
                recipe, dataset, chosen.torch_device, display, interrupts, steps=self.steps
            )
        current = recipe.training.learning_rate
        find_rate.draw_range_test(result, current).savefig(self.picture, dpi=120)
        self._end({"suggestion": result.suggestion, "rates": result.rates, "losses": result.losses})
        display.note(
            f"the loss falls fastest at {result.suggestion:.2g}, the recipe has {current:.2g}; "
            f"see {self.picture}; try --set training.learning_rate={result.suggestion:.2g}"
        )
        return DONE


class Evaluate(_JsonCommand):
    """Measure a published bundle on a test split, through ONNX Runtime."""

    bundle_dir: CliPositionalArg[Path] = Field(description="<repository>/<model>/<version>")
    data: Source | None = Field(
        default=None, description="source whose test split is used; default: that of the bundle's recipe"
    )
    data_root: Path | None = Field(
        default=None, description="folder of the data, for sources that read files"
    )
    cache: Path | None = Field(
        default=None,
        description="folder of decoded images, runs/.cache say; default: decoded anew, in memory",
    )

    def run(self) -> int:
        """Do the work and return the exit code."""
        require_training()
        from training.evaluation.evaluate_bundle import evaluate_bundle

        result = evaluate_bundle(self.bundle_dir, self.data, self.data_root, self.cache)
        self._end(result.model_dump(mode="json"))
        if not self.as_json:
            _for_people().print(scores_table(result.labels, result.metrics))
        return DONE


def _for_people() -> Console:
    """stdout, as wide as the terminal; a pipe has no width that a table should be cut to."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
