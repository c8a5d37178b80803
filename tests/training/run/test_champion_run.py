"""Whole runs against a champion: a first version, and a planted regression."""

import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from serving.bundle import Description, Geometry, Repository, reference_of
from serving.bundle.operations import remove_alias
from serving.errors import BundleError
from tests.training.fake_recipe import FakeRecipe
from training.champion.result import Challenge
from training.data import load
from training.data.sources import fake
from training.devices.device import choose
from training.export.publish import publish
from training.recipe import DataRecipe, Recipe
from training.report.metrics import Metrics
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.job import Job, train_and_evaluate
from training.run.run_folder import RunFolder
from training.run.summary import RunSummary

MODEL = "patterns"


@dataclass
class Runs:
    """Runs of one model on files of arrays."""

    folder: Path
    recipe: Recipe

    def train(self, name: str, *, shuffle: int | None = None, resume: bool = False) -> tuple[RunSummary, str]:
        """Train on the patterns; `shuffle`: the training labels of this class are drawn anew."""
        data, printed = self.folder / name, io.StringIO()
        if not resume:
            data.mkdir()
            _write_patterns(data / "patterns.npz", shuffle)
        job = Job(
            repository=Repository(self.folder / "repository"),
            model=MODEL,
            run_dir=self.folder / f"run-{name}",
            data_root=data,
            device=choose("cpu"),
            display=Display(Console(file=printed, width=500)),
            interrupts=Interrupts(),
            resume=resume,
        )
        return train_and_evaluate(self.recipe, job), printed.getvalue()

    @property
    def repository(self) -> Repository:
        """Where they publish."""
        return Repository(self.folder / "repository")


def _write_patterns(path: Path, shuffle: int | None) -> None:
    """The generated patterns as arrays with splits; every file has the same images."""
    data = DataRecipe(source="fake", fake_images_per_class=120)
    train = fake.load(Geometry(height=28, width=28, channels=1, background=0), data).train
    order = np.random.default_rng(0).permutation(len(train))
    images, labels = np.asarray(train.images[:])[order, ..., 0], train.labels[order].astype(np.uint8)
    learned = labels.copy()
    if shuffle is not None:
        members = np.flatnonzero(labels == shuffle)
        learned[members] = np.random.default_rng(1).integers(0, 4, len(members))
    parts = {"train": (0, 200, learned), "val": (200, 260, learned), "test": (260, 480, labels)}
    arrays: dict[str, npt.NDArray[np.uint8]] = {}
    for split, (start, end, of_split) in parts.items():
        arrays |= {f"{split}_images": images[start:end], f"{split}_labels": of_split[start:end, None]}
    np.savez(path, **arrays)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory, fake_recipe: FakeRecipe) -> Runs:
    """A repository with the first version, which its run promoted."""
    lenient = ("gates.allow_zero_recall=true", "gates.max_ece=1", "data.min_validation_images_per_class=5")
    runs = Runs(tmp_path_factory.mktemp("champion"), fake_recipe("data.source=npz", *lenient))
    summary, printed = runs.train("first")
    assert (summary.version, summary.gate) == (1, "promote")
    assert "patterns has no version yet" in printed
    return runs


@pytest.fixture
def runs(champion: Runs, tmp_path: Path) -> Runs:
    """A copy of that repository."""
    shutil.copytree(champion.folder / "repository", tmp_path / "repository")
    return replace(champion, folder=tmp_path)


def test_a_first_version_is_stable_and_says_what_it_knows(champion: Runs) -> None:
    """Its manifest has the verdict, its report the digests of its training images."""
    bundle = champion.repository.read(MODEL, 1)
    assert champion.repository.aliases(MODEL) == {"stable": 1}
    assert bundle.manifest.gate is not None
    assert (bundle.manifest.gate.verdict, bundle.manifest.gate.champion) == ("promote", None)
    assert "report/known-images.npy" in bundle.manifest.files


def test_a_planted_regression_is_refused_by_name(runs: Runs) -> None:
    """The labels of one class were shuffled: nothing is published, and every place names the class."""
    summary, printed = runs.train("shuffled", shuffle=2)
    assert (summary.verdict, summary.gate, summary.version) == ("refused", "refuse", None)
    assert runs.repository.versions(MODEL) == [1]
    assert runs.repository.aliases(MODEL) == {"stable": 1}
    report = runs.folder / "run-shuffled" / "report"
    page = (report / "report.html").read_text()
    assert summary.refusal is not None
    for place in (summary.refusal, printed, page.replace("&#39;", "'")):
        assert "recall of every label" in place
        assert "'2' 0." in place
    assert "worse than version 1" in page
    metrics = Metrics.model_validate_json((report / "metrics.json").read_text())
    challenge = metrics.champion
    assert challenge is not None
    assert (challenge.verdict, challenge.champion) == ("refuse", 1)
    assert (challenge.images, challenge.left_out) == (220, 0)

    _check_forced(runs, metrics, challenge)


def _check_forced(runs: Runs, metrics: Metrics, challenge: Challenge) -> None:
    """What `--force` changes: the version is published, and says why it should not have been."""
    dataset, _ = load(runs.recipe.data, runs.recipe.geometry, runs.folder / "shuffled")
    forced = challenge.model_copy(update={"forced": True})
    bundle = publish(
        runs.repository,
        recipe=runs.recipe,
        folder=RunFolder(runs.folder / "run-shuffled"),
        metrics=metrics.model_copy(update={"champion": forced}),
        test=dataset.test,
        labels=dataset.labels,
        reference=reference_of(np.eye(4)),
    )
    gate = json.loads((bundle.folder / "manifest.json").read_text())["gate"]
    assert (gate["verdict"], gate["champion"], gate["forced"]) == ("refuse", 1, True)
    assert any("'2' 0." in reason for reason in gate["reasons"])


def test_a_damaged_champion_is_not_replaced(runs: Runs) -> None:
    """Without `stable`, which names it since then: servers that have loaded it go on with it."""
    remove_alias(runs.repository, MODEL, "stable")
    lost = runs.repository.folder(MODEL, 1) / "report" / "predictions.csv"
    lost.unlink()
    summary, printed = runs.train("damaged")
    assert (summary.version, summary.gate) == (2, "candidate")
    assert "against version 1, the champion: a candidate" in printed
    assert f"the champion can be read: {lost} cannot be read: No such file or directory" in printed
    assert runs.repository.aliases(MODEL) == {"stable": 1}


def test_a_champion_that_does_not_run_ends_a_run_that_can_be_resumed(runs: Runs) -> None:
    """Before it publishes: without `stable`, servers would serve the candidate. Nothing is trained again."""
    first = runs.repository.read(MODEL, 1)
    described = {key: getattr(first.manifest, key) for key in Description.model_fields}

    def write(folder: Path) -> Description:
        shutil.copytree(first.folder, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        (folder / "model.onnx").write_bytes(b"operators of a newer ONNX Runtime")
        return Description(**described)

    runs.repository.publish(MODEL, write)
    remove_alias(runs.repository, MODEL, "stable")
    with pytest.raises(BundleError, match=r"nothing is published: version 2 .* does not run on this machine"):
        runs.train("next")
    assert (runs.repository.versions(MODEL), runs.repository.aliases(MODEL)) == ([1, 2], {})
    runs.repository.set_alias(MODEL, "stable", 1)
    trained = (runs.folder / "run-next" / "checkpoint.pt").read_bytes()
    summary, printed = runs.train("next", resume=True)
    assert (summary.version, summary.verdict) == (3, "published")
    assert "against version 1, the champion" in printed
    assert (runs.folder / "run-next" / "checkpoint.pt").read_bytes() == trained


@pytest.mark.parametrize(
    ("file", "content"), [("aliases.json", "{"), ("aliases.history.jsonl", "no line of the log\n")]
)
def test_invalid_aliases_end_a_run_before_it_trains(
    file: str, content: str, job: Job, fake_recipe: FakeRecipe
) -> None:
    """Which version is the champion, or was, cannot be known, and hours later that would be too late."""
    folder = job.repository.root / job.model
    (folder / "1").mkdir(parents=True)
    (folder / file).write_text(content)
    with pytest.raises(BundleError, match=file.replace(".", r"\.")):
        train_and_evaluate(fake_recipe(), job)
    assert not job.run_dir.exists()
