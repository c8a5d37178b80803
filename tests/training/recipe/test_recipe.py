"""Recipes: what is rejected, and with which message."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from training.errors import RecipeError
from training.recipe import Recipe, recipe_from_settings, resolve, shipped_names
from training.recipe.sections import AugmentationRecipe


def test_shipped_recipes_all_resolve() -> None:
    """Every shipped recipe is valid, has its file's name and a summary."""
    recipes = {name: resolve(name) for name in shipped_names()}
    assert {"lenet5-digits", "lenet5-mnist", "lenet5-folder", "lenet5-fake"} <= set(recipes)
    assert all(recipe.name == name and recipe.summary for name, recipe in recipes.items())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "training.epoch=3",
            "recipe lenet5-digits: unknown key 'training.epoch'; did you mean 'training.epochs'?",
        ),
        ("epochs=3", "unknown key 'epochs'; did you mean 'training.epochs'?"),
        ("netwrok.dropout=0.1", "unknown key 'netwrok'; did you mean 'network'?"),
        ("geometry.heigth=32", "unknown key 'geometry.heigth'; did you mean 'geometry.height'?"),
        ("training.epochs=0", "training.epochs: must be at least 1, got 0"),
        ("network.dropout=1.5", "network.dropout: must be less than 1, got 1.5"),
        ("network.dropout=much", "network.dropout: must be a number, got 'much'"),
        (
            "data.source=mnits",
            "data.source: must be digits, mnist, fashion-mnist, cifar10, ",
        ),
        ("network.name=lenet", "network.name: unknown network 'lenet'; the nearest names are lenet5, "),
        (
            "network.train_from=head",
            "network: weights and train_from need a torchvision backbone, lenet5 is not one: remove them",
        ),
        ("network.residual=true", "network: residual applies to alexnet only, not to lenet5: remove it"),
        ("head.kind=rbf-svm", "head.kind applies to method few-shot only, the method is train: remove it"),
        (
            "network.head_hidden=[64]",
            "network: head_hidden needs a torchvision backbone, lenet5 is not one: use network.hidden",
        ),
        ("summary.more.less=1", "'summary' is not a section"),
        ("training.epochs", "invalid override 'training.epochs': use section.key=value"),
    ],
)
def test_invalid_override_is_rejected_with_key_value_and_limit(override: str, said: str) -> None:
    """The message names the nearest known key, or the key, the value and the limit."""
    with pytest.raises(RecipeError) as caught:
        resolve("lenet5-digits", [override])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        (
            "transfer",
            "network.activation=silu",
            "network: activation has no effect on squeezenet1_1, a torchvision backbone",
        ),
        (
            "few-shot",
            "network.head_hidden=[64]",
            "network.head_hidden applies to method train only, the method is few-shot",
        ),
        (
            "allconv-cifar10",
            "network.hidden=[64]",
            "network: hidden has no effect on allconv, which has no hidden dense layer",
        ),
    ],
)
def test_settings_without_effect_on_a_network_are_rejected(name: str, override: str, said: str) -> None:
    """A setting is never ignored silently."""
    with pytest.raises(RecipeError, match=re.escape(said)):
        resolve(name, [override])


def test_the_logits_of_our_own_networks_are_no_features() -> None:
    """Their head is not trained when features are computed."""
    own = ["network.name=lenet5", "network.weights=random", "head.layer=logits"]
    with pytest.raises(
        RecipeError, match=r"head\.layer=logits needs a torchvision backbone, lenet5 is not one"
    ):
        resolve("few-shot", own)


@pytest.mark.parametrize("name", ["few-shot", "imagenet"])
def test_views_without_training_are_rejected(name: str) -> None:
    """Only trained networks average views; the setting is not ignored silently."""
    with pytest.raises(
        RecipeError,
        match=r": network.views must be 1 with method [a-z-]+, got 2: remove it, or set method to train$",
    ):
        resolve(name, ["network.views=2"])


def test_unknown_recipe_names_the_nearest() -> None:
    """The message for a misspelt recipe names the one that was probably meant."""
    with pytest.raises(RecipeError, match=r"unknown recipe 'lenet5-digit': did you mean lenet5-digits\?"):
        resolve("lenet5-digit")


def test_recipe_file_contains_only_what_differs(tmp_path: Path) -> None:
    """A recipe is named after its file, and keeps the other defaults of a section."""
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nsource = "digits"\n[geometry]\nchannels = 3\n')
    recipe = resolve(str(path))
    assert (recipe.name, recipe.geometry.channels, recipe.geometry.height) == ("mine", 3, 28)


@pytest.mark.parametrize("content", [b"[data", b"\xff\xfe", b"data = " + b"[" * 5000, None])
def test_unreadable_recipe_file_is_rejected(tmp_path: Path, content: bytes | None) -> None:
    """A missing file, or one that is not UTF-8 or not TOML, is a RecipeError that names it."""
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"broken\.toml"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("x", "recipe in metrics.json: must be keys with values, got str"),
        ({"data": 1, "data.source": "fake"}, "recipe in metrics.json: 'data' has both a value and keys"),
    ],
)
def test_damaged_settings_of_a_run_are_rejected(settings: object, said: str) -> None:
    """A report's file can be damaged: a RecipeError names it."""
    with pytest.raises(RecipeError, match=re.escape(said)):
        recipe_from_settings(settings, "metrics.json")


def test_recipe_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    """With the mark that it writes first, and its ends of lines."""
    (tmp_path / "own.toml").write_bytes(b'\xef\xbb\xbf[data]\r\nsource = "fake"\r\n')
    assert resolve(str(tmp_path / "own.toml")).data.source == "fake"


def test_digest_depends_on_what_determines_the_result() -> None:
    """The digest changes with any setting except texts, memory limit and CUDA graphs."""
    plain = resolve("lenet5-digits")
    assert plain.digest() == resolve("lenet5-digits", ["summary=other words"]).digest()
    assert plain.digest() == resolve("lenet5-digits", ["tuned_on_test=the epochs"]).digest()
    assert plain.digest() != resolve("lenet5-digits", ["training.seed=1"]).digest()
    assert plain.digest() == resolve("lenet5-digits", ["data.memory_limit_gib=1"]).digest()
    assert plain.digest() == resolve("lenet5-digits", ["training.cuda_graphs=false"]).digest()


def test_digest_does_not_change_when_a_setting_is_added_at_its_default() -> None:
    """`variants.max_fp16_range` and others were added after results were recorded."""
    plain = resolve("lenet5-digits")
    counted = {key: value for key, value in plain.settings().items() if value != 0}
    assert counted.pop("variants.max_fp16_range") == 0.25
    assert counted.pop("gates.min_skill") == 0.1
    assert counted.pop("network.head_hidden") == []
    assert counted.pop("report.images") == "all"  # never counts
    counted = {key: value for key, value in counted.items() if not key.startswith("champion.")}  # nor these
    canonical = json.dumps(counted, sort_keys=True, separators=(",", ":"))
    assert plain.digest() == hashlib.sha256(canonical.encode()).hexdigest()
    assert plain.digest() != resolve("lenet5-digits", ["variants.max_fp16_range=0.5"]).digest()
    assert plain.digest() == resolve("lenet5-digits", ["champion.max_drift=0.5"]).digest()
    transfer = resolve("transfer")
    assert transfer.digest() == resolve("transfer", ["network.head_hidden=[]"]).digest()
    assert transfer.digest() != resolve("transfer", ["network.head_hidden=[64]"]).digest()


def test_digest_does_not_change_when_a_setting_is_added_and_off() -> None:
    """Older results still belong to the recipe, until the setting is on."""

    class Augmentation(AugmentationRecipe):
        strength: float = 0.0

    class Wider(Recipe):
        augmentation: Augmentation = Augmentation()

    plain = resolve("lenet5-digits")
    settings = plain.model_dump()
    wider = Wider.model_validate(settings)
    assert "augmentation.strength" in wider.settings()
    assert wider.digest() == plain.digest()
    settings["augmentation"]["strength"] = 0.5
    assert Wider.model_validate(settings).digest() != plain.digest()


@pytest.mark.parametrize(
    ("name", "overrides", "chose"),
    [
        ("lenet5-digits", [], True),
        ("lenet5-digits", ["training.keep=last"], False),
        ("lenet5-digits", ["training.epochs=1"], False),
        ("pneumonia-transfer", [], True),  # among the epochs of the head
        ("pneumonia-transfer", ["training.head_epochs=0"], False),
        ("few-shot", [], False),
    ],
)
def test_validation_chooses_the_epoch_unless_the_last_is_kept(
    name: str, overrides: list[str], *, chose: bool
) -> None:
    """Its accuracy is then optimistic, and no hold-out."""
    assert resolve(name, overrides).validation_chose_epoch is chose


def test_last_override_wins() -> None:
    """Overrides apply in order."""
    recipe = resolve("lenet5-digits", ["training.epochs=3", "training.epochs=4", "network.batch_norm=false"])
    assert (recipe.training.epochs, recipe.network.batch_norm) == (4, False)
