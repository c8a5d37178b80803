"""Recipes: what is refused, and by which words."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from training.errors import RecipeError
from training.recipe import Recipe, resolve, shipped_names
from training.recipe.sections import AugmentationRecipe


def test_shipped_recipes_all_resolve() -> None:
    """Every recipe that is shipped is valid, carries its file's name and says what it is."""
    recipes = {name: resolve(name) for name in shipped_names()}
    assert {"lenet5-digits", "lenet5-mnist", "lenet5-folder", "lenet5-fake"} <= set(recipes)
    assert all(recipe.name == name and recipe.summary for name, recipe in recipes.items())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epoch=3", "there is no key 'training.epoch', did you mean 'training.epochs'?"),
        ("epochs=3", "there is no key 'epochs', did you mean 'training.epochs'?"),
        ("netwrok.dropout=0.1", "there is no key 'netwrok', did you mean 'network."),
        ("geometry.heigth=32", "there is no key 'geometry.heigth', did you mean 'geometry.height'?"),
        ("training.epochs=0", "training.epochs: input should be greater than or equal to 1, got 0"),
        ("network.dropout=1.5", "network.dropout: input should be less than 1, got 1.5"),
        ("network.dropout=much", "network.dropout: input should be a valid number"),
        (
            "data.source=mnits",
            "data.source: input should be 'digits', 'mnist', 'fashion-mnist', 'cifar10', ",
        ),
        ("network.name=lenet", "there is no network 'lenet', the nearest names are lenet5, "),
        ("network.train_from=head", "network.train_from are for backbones, and lenet5 is not one"),
        ("network.residual=true", "network.residual is of alexnet, not of lenet5"),
        ("head.kind=rbf-svm", "head.kind is for method few-shot, this is train"),
        ("summary.more.less=1", "'summary' is not a section"),
        ("training.epochs", "is not of the form section.key=value"),
    ],
)
def test_wrong_override_is_refused_with_key_value_and_bound(override: str, said: str) -> None:
    """An override that cannot be meant names the nearest known key, or the value and its bound."""
    with pytest.raises(RecipeError) as caught:
        resolve("lenet5-digits", [override])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        (
            "transfer",
            "network.activation=silu",
            "network.activation is of our own networks, squeezenet1_1",
        ),
        ("allconv-cifar10", "network.hidden=[64]", "network.hidden has no effect: allconv has no hidden"),
    ],
)
def test_settings_that_a_network_has_not_are_refused(name: str, override: str, said: str) -> None:
    """Nothing that was asked for is left out in silence."""
    with pytest.raises(RecipeError, match=re.escape(said)):
        resolve(name, [override])


@pytest.mark.parametrize("name", ["few-shot", "imagenet"])
def test_views_that_nobody_would_look_at_are_refused(name: str) -> None:
    """Frozen features and published networks see an image as it is; no view is left out in silence."""
    with pytest.raises(RecipeError, match=r": network.views is for method train, of [a-z-]+ it must be 1$"):
        resolve(name, ["network.views=2"])


def test_unknown_recipe_names_the_nearest() -> None:
    """A misspelt recipe is answered by the one that was probably meant."""
    with pytest.raises(RecipeError, match=r"no recipe 'lenet5-digit': did you mean lenet5-digits\?"):
        resolve("lenet5-digit")


def test_recipe_file_says_only_what_differs(tmp_path: Path) -> None:
    """A file with one section resolves, is named after itself, and keeps the other defaults of a section."""
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nsource = "digits"\n[geometry]\nchannels = 3\n')
    recipe = resolve(str(path))
    assert (recipe.name, recipe.geometry.channels, recipe.geometry.height) == ("mine", 3, 28)


@pytest.mark.parametrize("content", [b"[data", b"\xff\xfe", None])
def test_unreadable_recipe_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, no text or no TOML is a RecipeError that names it."""
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"broken\.toml"):
        resolve(str(path))


def test_digest_follows_what_decides_the_run() -> None:
    """The digest changes with any setting, and not with prose, memory, or how kernels are launched."""
    plain = resolve("lenet5-digits")
    assert plain.digest() == resolve("lenet5-digits", ["summary=other words"]).digest()
    assert plain.digest() != resolve("lenet5-digits", ["training.seed=1"]).digest()
    assert plain.digest() == resolve("lenet5-digits", ["data.memory_limit_gib=1"]).digest()
    assert plain.digest() == resolve("lenet5-digits", ["training.cuda_graphs=false"]).digest()


def test_digest_stays_when_there_is_one_more_setting_and_nobody_asks_for_it() -> None:
    """`variants.max_fp16_range` came after results were recorded: its default is what they were made with."""
    plain = resolve("lenet5-digits")
    on = {key: value for key, value in plain.settings().items() if value != 0}
    assert on.pop("variants.max_fp16_range") == 0.25
    canonical = json.dumps(on, sort_keys=True, separators=(",", ":"))
    assert plain.digest() == hashlib.sha256(canonical.encode()).hexdigest()
    assert plain.digest() != resolve("lenet5-digits", ["variants.max_fp16_range=0.5"]).digest()


def test_digest_stays_when_there_is_one_more_setting_and_it_is_off() -> None:
    """A record of before is of the same recipe still; of another where the setting is on."""

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


def test_last_override_wins() -> None:
    """Overrides apply in order."""
    recipe = resolve("lenet5-digits", ["training.epochs=3", "training.epochs=4", "network.batch_norm=false"])
    assert (recipe.training.epochs, recipe.network.batch_norm) == (4, False)
