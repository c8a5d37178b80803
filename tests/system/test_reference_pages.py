"""The reference pages of docs/ agree with the code: settings, manifest keys, errors, options of commands."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from serving import errors
from serving.batch_job.cli import Batch
from serving.bundle import Manifest
from serving.cli import COMMANDS
from serving.commandline import Command, resolve
from serving.rpc.status import code_of
from serving.settings import ServerSettings
from training import cli as training_cli
from training.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}
TRAINING_COMMANDS = {
    "run": training_cli.Run,
    "recipes": training_cli.Recipes,
    "layers": training_cli.Layers,
    "find-rate": training_cli.FindRate,
    "evaluate": training_cli.Evaluate,
    "verify": training_cli.Verify,
    "report": training_cli.Report,
    "visualize": training_cli.Visualize,
}


def rows(page: str, first: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of all table rows whose first cell matches."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and re.fullmatch(first, cells[0].strip("` ")):
            found[cells[0].strip("` ")] = cells[1:]
    return found


def test_configuration_lists_every_setting_with_its_default() -> None:
    """Options, environment variables and defaults of docs/configuration.md are those of ServerSettings."""
    documented = rows(PAGES["configuration.md"], r"--[\w-]+")
    fields = ServerSettings.model_fields
    assert set(documented) == {f"--{name.replace('_', '-')}" for name in fields}
    for name, field in fields.items():
        environment, default, _unit, meaning = documented[f"--{name.replace('_', '-')}"]
        assert environment == f"`LENSERVE_{name.upper()}`"
        assert default == in_words(field.default), name
        assert meaning


def in_words(default: object) -> str:
    """Return a default as written in docs/configuration.md."""
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int):
        return str(default) if 8000 < default < 9000 else f"{default:,}"  # ports have no separator
    return "none" if default in (None, []) else str(default)


def test_batch_page_lists_every_option_with_its_default() -> None:
    """Options and defaults of docs/batch.md are those of `lenserve batch`."""
    documented = rows(PAGES["batch.md"], r"--[\w-]+")
    fields = {
        f"--{(field.alias or name).replace('_', '-')}": field
        for name, field in Batch.model_fields.items()
        if name not in ("source", "config")
    }
    assert set(documented) == set(fields)
    for option, field in fields.items():
        default, meaning = documented[option]
        assert default == in_words(field.default), option
        assert meaning


def test_bundle_page_lists_every_key_of_the_manifest() -> None:
    """Keys of docs/bundle.md are those of the pydantic models, nested ones included."""
    documented = set(rows(PAGES["bundle.md"], r"[a-z][\w.*]*")) - {"image", "images", "probabilities"}
    assert documented == set(keys_of(Manifest)) - SAME_AS_EVALUATION


SAME_AS_EVALUATION = {
    f"variants.*.evaluation.{key}"
    for key in ("images", "correct", "accuracy.value", "accuracy.low", "accuracy.high", "ece")
}


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys; `*` for any key of a mapping, and optional objects themselves too."""
    for name, field in model.model_fields.items():
        yield from keys_within(field.annotation, f"{prefix}{name}")


def keys_within(annotation: object, key: str) -> Iterator[str]:
    """Keys of one value."""
    arguments = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from keys_of(annotation, f"{key}.")
    elif get_origin(annotation) is UnionType and any(nests(each) for each in arguments):
        yield key
        yield from (inner for each in arguments if each is not NoneType for inner in keys_within(each, key))
    elif len(arguments) == 2 and nests(arguments[1]):
        yield key
        if key == "variants":
            yield f"{key}.*.evaluation"
        yield from keys_within(arguments[1], f"{key}.*")
    else:
        yield key


def nests(annotation: object) -> bool:
    """Whether a value of this type has keys."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


REQUEST_ERRORS = (
    errors.InvalidRequest,
    *errors.InvalidRequest.__subclasses__(),
    *errors.ImageError.__subclasses__(),
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.UnknownModel,
    errors.ModelUnavailable,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.OutOfMemory,
)


@pytest.mark.parametrize("kind", [kind for kind in REQUEST_ERRORS if kind is not errors.ImageError])
def test_api_page_has_every_error_with_its_code(kind: type[errors.LenserveError]) -> None:
    """A row of docs/api.md holds the reason and the gRPC code."""
    error = kind("")
    (row,) = (
        line
        for line in PAGES["api.md"].splitlines()
        if line.startswith("|") and f"`{error.reason}`" in line.rsplit("|", 2)[1]
    )
    assert f"`{code_of(error).name}`" in row


def test_options_and_keys_of_documented_commands_exist() -> None:
    """Commands that no test runs still name commands, options and recipe keys of the code."""
    found = [line for text in PAGES.values() for line in commands_of(text)]
    assert len(found) > 20
    for line in found:
        command = command_of(line.split())
        known = {
            f"--{(field.alias or name).replace('_', '-')}" for name, field in command.model_fields.items()
        }
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", line):
            assert option in known | {"--help", "--version"}, line
        for key in re.findall(r"--set '?([\w.]+)=", line):
            assert key in set(keys_of(Recipe)), line


def commands_of(text: str) -> Iterator[str]:
    """Lines of code blocks that call one of our programs, without comments."""
    for block in re.findall(r"```(?:sh|text)\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith(("lenserve ", "lenserve-train ")):
                yield re.sub(r"\s#.*| [&|] ?.*|&$", "", line)


def command_of(words: list[str]) -> type[Command]:
    """The class behind `lenserve models list ...` and the like."""
    found: Any = COMMANDS if words[0] == "lenserve" else TRAINING_COMMANDS
    for word in words[1:]:
        found = found[word]
        if not isinstance(found, Mapping):
            return resolve(found)
    raise AssertionError(words)


GRPC_SAYS = "failed to connect to all addresses"


def test_messages_of_the_troubleshooting_page_are_in_the_code() -> None:
    """Quoted messages, `...` for what varies, are those that the programs print."""
    files = (path for folder in ("serving", "training") for path in (ROOT / folder).rglob("*.py"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)  # literals that go on in the next line
    for heading in re.findall(r"^\*\*`.*?\*\*", PAGES["troubleshooting.md"], re.MULTILINE | re.DOTALL):
        for message in re.findall(r"`([^`]+)`", heading):
            text = re.sub(r"^[A-Z_]+: ", "", " ".join(message.split()))
            for part in text.split("..."):
                assert part.strip(" :';") in code or part.strip() == GRPC_SAYS, message
