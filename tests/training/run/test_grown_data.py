"""Runs on a directory that grows, and evaluations of their bundles."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from serving.bundle import MANIFEST_FILE, Bundle, Repository
from serving.errors import LenserveError
from training.cli import main
from training.data.assignment import read_assignment
from training.devices.device import choose
from training.errors import RunFolderConflict
from training.evaluation.evaluate_bundle import evaluate_bundle
from training.evaluation.verify_bundle import verify_bundle
from training.recipe import Recipe, resolve
from training.recipe.recipe import recipe_from_settings
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.job import Job, train_and_evaluate

COLOURS = ("blue", "red")


def write_colours(*roots: Path, count: int, seed: int) -> None:
    """Write small noise images, each class in its colour."""
    random = np.random.default_rng(seed)
    for root in roots:
        for channel, name in ((2, "blue"), (0, "red")):
            (root / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = random.integers(0, 100, (16, 16, 3), dtype=np.uint8)
                pixels[:, :, channel] += 155
                Image.fromarray(pixels).save(root / name / f"{seed}-{number:03}.png")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """lenet5-fake on directories; so short that no gate fits."""
    short = ("training.epochs=1", "gates.max_ece=1.0", "gates.min_skill=-1", "gates.allow_zero_recall=true")
    few = ("data.min_validation_images_per_class=1", "data.validation_fraction=0.3")
    return resolve("lenet5-fake", ["data.source=folder", "geometry.channels=3", *few, *short])


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> tuple[Path, Job, list[str]]:
    """A directory on which two runs published versions 1 and 2, and what each printed."""
    folder = tmp_path_factory.mktemp("grown")
    printed = []
    for seed, count in ((0, 60), (1, 10)):
        write_colours(folder / "photos", count=count, seed=seed)
        written = io.StringIO()
        job = Job(
            repository=Repository(folder / "repository"),
            model="colours",
            run_dir=folder / f"run{seed}",
            data_root=folder / "photos",
            device=choose("cpu"),
            display=Display(Console(file=written, width=500)),
            interrupts=Interrupts(),
        )
        assert train_and_evaluate(recipe, job).verdict == "published"
        printed.append(written.getvalue())
    return folder, job, printed


def bundle(grown: tuple[Path, Job, list[str]], version: int) -> Bundle:
    """A published version."""
    return grown[1].repository.read("colours", version)


def test_a_run_on_grown_data_says_what_each_split_gained(grown: tuple[Path, Job, list[str]]) -> None:
    """And that no image moved; the assignments of both versions are kept with them."""
    folder, _, (first, second) = grown
    earlier, later = (
        read_assignment(bundle(grown, version).folder / "report" / "splits.csv") for version in (1, 2)
    )
    assert earlier is not None
    assert later is not None
    assert (len(earlier), len(later)) == (120, 140)
    assert all(later[digest] == split for digest, split in earlier.items())
    new = [split for digest, split in later.items() if digest not in earlier]
    gained = (
        f"train gained {new.count('train')} images, "
        f"validation {new.count('validation')}, test {new.count('test')}; none moved"
    )
    assert f"since colours version 1: {gained}" in second
    assert "since colours" not in first
    assert (folder / "run0" / "report" / "splits.csv").read_bytes() == (
        bundle(grown, 1).folder / "report" / "splits.csv"
    ).read_bytes()


def test_other_splits_of_the_same_images_are_a_warning(
    grown: tuple[Path, Job, list[str]], recipe: Recipe, tmp_path: Path
) -> None:
    """With another seed the versions cannot be compared: the run says so."""
    folder, job, _ = grown
    shutil.copytree(folder / "repository", tmp_path / "repository")
    Repository(tmp_path / "repository").set_alias("colours", "stable", 2)
    written = io.StringIO()
    job = replace(
        job,
        repository=Repository(tmp_path / "repository"),
        run_dir=tmp_path / "run",
        display=Display(Console(file=written, width=500)),
    )
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"split_seed": 5})})
    assert train_and_evaluate(other, job).verdict == "published"
    assert (
        "since colours version 2: train gained 0 images, validation 0, test 0; moved: " in written.getvalue()
    )
    assert "cannot be compared: keep data.split_seed" in written.getvalue()


def test_the_splits_of_the_champion_are_compared(
    grown: tuple[Path, Job, list[str]], recipe: Recipe, tmp_path: Path
) -> None:
    """A newer version does not hide them; exchanged labels are a warning and a reason against promotion."""
    folder, job, _ = grown
    for name in ("repository", "photos"):
        shutil.copytree(folder / name, tmp_path / name)
    repository = Repository(tmp_path / "repository")
    shutil.copytree(repository.folder("colours", 2), repository.folder("colours", 3))
    (repository.folder("colours", 3) / "report" / "splits.csv").unlink()
    repository.set_alias("colours", "stable", 2)
    photos = tmp_path / "photos"
    (photos / "red").rename(photos / "other")
    (photos / "blue").rename(photos / "red")
    (photos / "other").rename(photos / "blue")
    written = io.StringIO()
    job = replace(
        job,
        repository=repository,
        run_dir=tmp_path / "run",
        data_root=photos,
        display=Display(Console(file=written, width=500)),
    )
    summary = train_and_evaluate(recipe, job)
    said = "140 of 140 known images have another label: 'blue' is now 'red' (70), 'red' is now 'blue' (70)"
    assert f"! since colours version 2: {said}" in written.getvalue()
    assert f"✗ labels of known images: {said}; maximum 5 % of any label" in written.getvalue()
    assert summary.gate == "candidate"
    assert repository.aliases("colours") == {"stable": 2}


def test_a_directory_that_was_trained_on_is_evaluated_without_those_images(
    grown: tuple[Path, Job, list[str]],
) -> None:
    """Version 2 is measured on its test split, version 1 also on the images that came later."""
    folder, job, _ = grown
    second = evaluate_bundle(bundle(grown, 2).folder, None, job.data_root)
    assert second.same_as_manifest
    assert second.left_out == 140 - second.metrics["images"]
    assert f"{second.left_out} images left out, which colours 2 was trained on" in second.notes
    first = evaluate_bundle(bundle(grown, 1).folder, None, folder / "photos")
    assert first.metrics["images"] == bundle(grown, 1).manifest.measured().images + 20


def test_verify_finds_the_test_split_of_a_directory_that_has_grown(
    grown: tuple[Path, Job, list[str]],
) -> None:
    """The proof of version 1 is repeated on exactly its own test images."""
    result = verify_bundle(bundle(grown, 1).folder, grown[0] / "photos")
    assert result.complete
    assert result.holds
    write_colours(grown[0] / "elsewhere", count=2, seed=9)
    other = verify_bundle(bundle(grown, 1).folder, grown[0] / "elsewhere")
    (why,) = (check.detail for check in other.checks if not check.passed)
    assert why.startswith("none of the 4 images in ")
    assert "is in the test split of colours 1: name the directory" in why


@pytest.mark.parametrize("below", ["", "test", "Testing", "val"])
def test_new_images_are_evaluated_all(
    grown: tuple[Path, Job, list[str]], tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class directories, alone or below one split: none is held back for training."""
    write_colours(tmp_path / "new" / below, count=4, seed=2)
    found = [str(bundle(grown, 1).folder), "--data-root", str(tmp_path / "new"), "--json"]
    assert main(["evaluate", *found]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["metrics"]["images"], result["left_out"], result["notes"]) == (8, 0, [])


def test_a_single_class_can_be_evaluated(grown: tuple[Path, Job, list[str]], tmp_path: Path) -> None:
    """A directory of photographs of one label."""
    write_colours(tmp_path, count=3, seed=3)
    shutil.rmtree(tmp_path / "blue")
    (tmp_path / "red" / "cut.png").write_bytes(b"x")
    result = evaluate_bundle(bundle(grown, 1).folder, None, tmp_path)
    assert result.metrics["images"] == 3
    assert result.notes == ("1 file skipped that cannot be decoded: red/cut.png",)


def test_images_that_were_all_trained_on_are_evaluated_with_a_note(
    grown: tuple[Path, Job, list[str]], tmp_path: Path
) -> None:
    """The training accuracy can be measured, and is called what it is."""
    written = (bundle(grown, 1).folder / "report" / "splits.csv").read_text().splitlines()[1:]
    for line in written:
        split, _, _, name = line.split(",")
        if split == "train":
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(grown[0] / "photos" / name, tmp_path / name)
    result = evaluate_bundle(bundle(grown, 1).folder, None, tmp_path)
    assert result.metrics["images"] == sum(line.startswith("train,") for line in written)
    assert "trained on all of these images" in result.notes[0]


def test_bundles_without_an_assignment_are_still_evaluated(
    grown: tuple[Path, Job, list[str]], tmp_path: Path
) -> None:
    """Those of earlier versions: all images are measured, with a note."""
    older = tmp_path / "repository" / "colours" / "1"
    shutil.copytree(bundle(grown, 1).folder, older)
    (older / "report" / "splits.csv").unlink()
    manifest = json.loads((older / MANIFEST_FILE).read_text())
    del manifest["files"]["report/splits.csv"]
    (older / MANIFEST_FILE).write_text(json.dumps(manifest))
    metrics = json.loads((older / "report" / "metrics.json").read_text())
    assert "data.val_is_test" not in metrics["recipe"]
    result = evaluate_bundle(older, None, grown[0] / "photos")
    assert result.metrics["images"] == 140
    assert "does not record its training images" in result.notes[0]


def test_copies_of_test_images_do_not_disturb_the_proof(
    grown: tuple[Path, Job, list[str]], tmp_path: Path
) -> None:
    """A copy belongs to the test split too, but the version was not tested on it."""
    folder, _, _ = grown
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for path in sorted((tmp_path / "photos" / "red").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    result = verify_bundle(bundle(grown, 2).folder, tmp_path / "photos")
    assert [check.name for check in result.checks if not check.passed] == []
    assert result.complete


def test_images_that_the_version_was_not_tested_on_are_noted(
    grown: tuple[Path, Job, list[str]], tmp_path: Path
) -> None:
    """The accuracy is another one than the report's. The same images get no note."""
    folder, _, _ = grown
    version = bundle(grown, 2).folder
    same = evaluate_bundle(version, None, folder / "photos")
    assert not [note for note in same.notes if "not the images" in note]
    shutil.copytree(folder / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "empty").mkdir()
    write_colours(tmp_path / "photos", count=5, seed=7)
    rows = (version / "report" / "splits.csv").read_text().splitlines()
    tested = [row.rpartition(",")[2] for row in rows if row.startswith("test,")]
    (tmp_path / "photos" / tested[0]).unlink()
    changed = evaluate_bundle(version, None, tmp_path / "photos")
    assert (
        f"not the images of the version's own test: 10 are new, 1 of {len(tested)} are missing"
        in changed.notes
    )


def test_force_comes_too_late_for_a_finished_run(grown: tuple[Path, Job, list[str]], recipe: Recipe) -> None:
    """The message says what helps; a run whose version was promoted is only shown again."""
    folder, job, _ = grown
    late = replace(job, run_dir=folder / "run1", resume=True, force=True)
    with pytest.raises(RunFolderConflict, match=r"\(candidate\), and --force .* promote colours@2`"):
        train_and_evaluate(recipe, late)
    assert train_and_evaluate(recipe, replace(late, run_dir=folder / "run0")).gate == "promote"


def kept(run_dir: Path) -> list[str]:
    """The files of a run, and the names of runs that were moved aside."""
    inside = [f"{path.relative_to(run_dir)} {path.stat().st_mtime_ns}" for path in run_dir.rglob("*")]
    return sorted(inside) + sorted(path.name for path in run_dir.parent.glob(f"*{run_dir.name}*"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data.group_pattern": "zzz"}, "matches none of"),
        ({"data.min_validation_images_per_class": 90}, "the validation split has"),
        ({"network.name": "resnet18", "network.weights": "nowhere"}, "weights nowhere cannot be read"),
        ({}, "needs --data-root"),
    ],
)
def test_a_run_that_cannot_begin_leaves_the_finished_one_in_place(
    grown: tuple[Path, Job, list[str]], recipe: Recipe, settings: dict[str, str | int], said: str
) -> None:
    """The data are refused, or missing, or the weights: nothing is moved aside."""
    _, job, _ = grown
    before = kept(job.run_dir)
    changed = recipe_from_settings({**recipe.settings(), **settings}, "the test")
    with pytest.raises(LenserveError, match=said):
        train_and_evaluate(changed, job if settings else replace(job, data_root=None))
    assert kept(job.run_dir) == before


def test_a_missing_data_root_is_a_wrong_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, as for every option, before anything is written."""
    places = ("--run-dir", str(tmp_path / "run"), "--repository", str(tmp_path / "repository"))
    assert main(["run", "lenet5-folder", *places]) == 2
    assert main(["run", "lenet5-folder", *places, "--data-root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is missing: name the directory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_data_root_that_is_not_read_is_a_wrong_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on other images than those that were named would be promoted."""
    places = ("--run-dir", str(tmp_path / "run"), "--repository", str(tmp_path / "repository"))
    assert main(["run", "lenet5-digits", *places, "--data-root", str(tmp_path / "labelled")]) == 2
    said = capsys.readouterr().err
    assert "data source digits does not read --data-root" in said
    assert "--set data.source=folder" in said
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_not_extended_on_other_data(
    grown: tuple[Path, Job, list[str]], recipe: Recipe
) -> None:
    """Its last weights have seen other images; the finished run stays where it is."""
    folder, job, _ = grown
    longer = recipe_from_settings({**recipe.settings(), "training.epochs": 2}, "the test")
    again = replace(job, run_dir=folder / "run0", resume=True)
    before = kept(again.run_dir)
    with pytest.raises(RunFolderConflict, match=r"was trained on other data.* train again without --resume"):
        train_and_evaluate(longer, again)
    assert kept(again.run_dir) == before
