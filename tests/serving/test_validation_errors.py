"""Validation errors in plain English: every kind that a model can raise, and none in pydantic's words."""

import importlib
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, FilePath, RootModel, ValidationError

from serving.bundle import Manifest
from serving.bundle.manifest import Strict
from serving.commandline import Command
from serving.validation_errors import OWN_WORDS, SENTENCES, Problem, describe, known_keys, matching, problems

# Modules whose models read what people write, or what other processes wrote.
MODULES = [
    "serving.bundle.manifest",
    "serving.bundle.repository",
    "serving.settings",
    "serving.cli",
    "serving.bench.cli",
    "serving.processes.messages",
    "serving.rpc.bearer_tokens",
    "training.cli",
    "training.recipe.recipe",
    "training.recipe.measured",
    "training.report.metrics",
    "training.run.summary",
]

PYDANTIC_WORDS = re.compile(
    r"Input|should|Field required|permitted|Value error|valid (string|integer|number)"
)


class Section(Strict):
    """Part of `Everything`."""

    rate: float = Field(default=0.5, gt=0, lt=1)
    epochs: int = Field(default=1, ge=1, le=9)


class Everything(Strict):
    """One key for each kind of error."""

    name: Annotated[str, matching("[a-z]+", "lower-case letters")] = "x"
    code: str = Field(default="A1", pattern="^[A-Z][0-9]$")
    short: str = Field(default="ab", min_length=2, max_length=3)
    kind: Literal["red", "green", "blue"] = "red"
    sizes: tuple[int, ...] = Field(default=(1, 2), min_length=2)
    few: list[int] = Field(default=[], max_length=2)
    on: bool = False
    even: int = Field(default=2, multiple_of=2)
    when: datetime | None = None
    day: date | None = None
    folder: Path | None = None
    file: FilePath | None = None
    section: Section = Section()
    by_kind: Mapping[Literal["red", "green"], Section] = {}
    label: str


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"label": 3}, "label: must be text, got 3"),
        ({}, "label: missing; add it"),
        ({"lable": "a", "label": "b"}, "unknown key 'lable'; did you mean 'label'?"),
        ({"colour": "red", "label": "b"}, "unknown key 'colour'; remove it"),
        ({"epochs": 3, "label": "b"}, "unknown key 'epochs'; did you mean 'section.epochs'?"),
        ({"sektion": {}, "label": "b"}, "unknown key 'sektion'; did you mean 'section'?"),
        ({"section": {"rte": 3}, "label": "b"}, "unknown key 'section.rte'; did you mean 'section.rate'?"),
        ({"label": "b", "name": "X1"}, "name: must be lower-case letters, got 'X1'"),
        ({"label": "b", "name": "x\n"}, r"name: must be lower-case letters, got 'x\n'"),
        ({"label": "b", "code": "a"}, "code: must match the regular expression ^[A-Z][0-9]$, got 'a'"),
        ({"label": "b", "short": "a"}, "short: must have at least 2 characters, got 'a'"),
        ({"label": "b", "short": "abcd"}, "short: must have at most 3 characters, got 'abcd'"),
        ({"label": "b", "kind": "pink"}, "kind: must be red, green or blue, got 'pink'"),
        ({"label": "b", "sizes": [1]}, "sizes: must have at least 2 entries, has 1"),
        ({"label": "b", "few": [1, 2, 3]}, "few: must have at most 2 entries, has 3"),
        ({"label": "b", "sizes": [1, "two", 3]}, "sizes[1]: must be a whole number, got 'two'"),
        ({"label": "b", "sizes": [1, 2.5, 3, 4]}, "sizes[1]: must be a whole number, got 2.5"),
        ({"label": "b", "sizes": 1}, "sizes: must be a list, got 1"),
        ({"label": "b", "on": "perhaps"}, "on: must be true or false, got 'perhaps'"),
        ({"label": "b", "even": 3}, "even: must be a multiple of 2, got 3"),
        (
            {"label": "b", "when": "yesterday"},
            "when: must be a date and time such as 2026-01-31T12:00:00Z, got 'yesterday'",
        ),
        ({"label": "b", "day": "June"}, "day: must be a date such as 2026-01-31, got 'June'"),
        ({"label": "b", "folder": 3}, "folder: must be a path, got 3"),
        ({"label": "b", "section": 3}, "section: must be keys with values, got 3"),
        ({"label": "b", "section": {"rate": 0}}, "section.rate: must be greater than 0, got 0"),
        ({"label": "b", "section": {"rate": "1"}}, "section.rate: must be less than 1, got 1"),
        ({"label": "b", "section": {"rate": "x"}}, "section.rate: must be a number, got 'x'"),
        ({"label": "b", "section": {"rate": float("inf")}}, "section.rate: must be a finite number, got inf"),
        ({"label": "b", "section": {"rate": None}}, "section.rate: must be a number, got null"),
        ({"label": "b", "section": {"rate": [1]}}, "section.rate: must be a number, got a list"),
        ({"label": "b", "section": {"epochs": 0}}, "section.epochs: must be at least 1, got 0"),
        ({"label": "b", "section": {"epochs": "10"}}, "section.epochs: must be at most 9, got 10"),
        ({"label": "b", "by_kind": {"pink": {}}}, "by_kind.pink: the key must be red or green, got 'pink'"),
        ({"label": "b", "by_kind": {"red": {"rate": 2}}}, "by_kind.red.rate: must be less than 1, got 2"),
        ({"label": "b", "name": "1" * 99}, f"name: must be lower-case letters, got '{'1' * 59}..."),
        # A kind that none of our models raises.
        ({"label": "b", "file": "/nowhere/at/all"}, "file: must be valid, got '/nowhere/at/all'"),
    ],
)
def test_a_message_names_the_key_the_value_and_the_limit(values: dict[str, Any], said: str) -> None:
    """One line, none of it in pydantic's words."""
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate(values)
    assert describe(caught.value, Everything) == said


def test_several_problems_are_joined_and_counted() -> None:
    """A line stays readable even if many keys are wrong."""
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate({"on": 2, "name": "X", "sizes": ["a", "b"], "label": "b"})
    said = describe(caught.value, Everything)
    assert said == (
        "name: must be lower-case letters, got 'X'; sizes[0]: must be a whole number, got 'a'; "
        "sizes[1]: must be a whole number, got 'b'; and 2 more"
    )
    assert len(problems(caught.value)) == 5


def test_problems_are_values() -> None:
    """The command line has other words for missing and unknown options."""
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate({"lable": "a"})
    assert problems(caught.value, Everything) == [
        Problem("label", "missing", "missing; add it"),
        Problem("lable", "unknown", "unknown key 'lable'; did you mean 'label'?", nearest="label"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "not valid JSON: EOF while parsing an object at line 1 column 1"),
        (b"[]", "must be keys with values, got a list"),
    ],
)
def test_an_error_of_the_whole_document_has_no_key(text: bytes, said: str) -> None:
    """The caller puts the file's name in front."""
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate_json(text)
    assert describe(caught.value, Everything) == said


def test_known_keys_are_those_that_users_write() -> None:
    """Aliases instead of fields, sections before their keys, and nothing of a mapping's root."""

    class Aliased(BaseModel):
        as_json: bool = Field(default=False, alias="json")
        section: Section | None = None

    class Mapped(RootModel[dict[str, Section]]):
        pass

    assert list(known_keys(Aliased)) == ["json", "section", "section.rate", "section.epochs"]
    assert list(known_keys(Mapped)) == []


UNKNOWN_KEY = "extra_forbidden"

# Which errors a schema can raise: https://docs.pydantic.dev/latest/errors/validation_errors/
TYPE_ERRORS = {
    "any": set(),
    "bool": {"bool_type", "bool_parsing"},
    "datetime": {
        "datetime_type",
        "datetime_parsing",
        "datetime_from_date_parsing",
        "datetime_object_invalid",
    },
    "date": {"date_type", "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact"},
    "dict": {"dict_type"},
    "float": {"float_type", "float_parsing", "finite_number"},
    "function-after": {"value_error", "assertion_error"},
    "function-before": {"value_error", "assertion_error"},
    "function-plain": {"value_error", "assertion_error"},
    "function-wrap": {"value_error", "assertion_error"},
    "int": {"int_type", "int_parsing", "int_parsing_size", "int_from_float", "finite_number"},
    "list": {"list_type"},
    "literal": {"literal_error"},
    "model": {"model_type", "model_attributes_type"},
    "model-fields": {"model_type", "model_attributes_type", "missing", UNKNOWN_KEY},
    "str": {"string_type", "string_unicode"},
    "tuple": {"tuple_type"},
}
CONSTRAINT_ERRORS = {
    "gt": "greater_than",
    "ge": "greater_than_equal",
    "lt": "less_than",
    "le": "less_than_equal",
    "multiple_of": "multiple_of",
    "pattern": "string_pattern_mismatch",
}
WITHOUT_ERRORS = {"default", "definitions", "definition-ref", "json-or-python", "lax-or-strict", "nullable"}
WITHOUT_ERRORS |= {"chain", "union", "is-instance", "model-field"}


def errors_of(schema: object) -> Iterator[str]:
    """Yield the types of all errors that a core schema can raise."""
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from errors_of(part)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if isinstance(kind, str):
        assert kind in TYPE_ERRORS or kind in WITHOUT_ERRORS, f"which errors does a {kind!r} schema raise?"
        yield from TYPE_ERRORS.get(kind, ())
        yield from (error for constraint, error in CONSTRAINT_ERRORS.items() if constraint in schema)
        if "min_length" in schema or "max_length" in schema:
            yield from ["string_too_short", "string_too_long"] if kind == "str" else ["too_short", "too_long"]
    for name, part in schema.items():
        if name not in ("metadata", "serialization", "ref", "function", "default", "config", "cls"):
            yield from errors_of(list(part.values()) if name == "fields" and isinstance(part, dict) else part)


def models() -> list[type[BaseModel]]:
    """Every model of the modules that read documents, options or messages."""
    found: dict[type[BaseModel], None] = {}
    for name in MODULES:
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, type) and issubclass(value, BaseModel):
                found[value] = None
    return [each for each in found if each not in (BaseModel, Command, RootModel)]


@pytest.mark.parametrize("model", models(), ids=lambda model: f"{model.__module__}.{model.__name__}")
def test_every_error_that_a_model_can_raise_has_a_sentence(model: type[BaseModel]) -> None:
    """A new constraint in a model needs its sentence."""
    raised = set(errors_of(model.__pydantic_core_schema__))
    assert raised
    assert raised <= {*SENTENCES, *OWN_WORDS, UNKNOWN_KEY}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(
    model=st.sampled_from(
        [
            Everything,
            Manifest,
            *(each for each in models() if each.model_fields and not issubclass(each, Command)),
        ]
    ),
    data=st.data(),
)
def test_messages_have_no_words_of_pydantic(model: type[BaseModel], data: st.DataObject) -> None:
    """Messages consist of our text and the value."""
    keys = st.sampled_from(list(model.model_fields))
    values = data.draw(st.dictionaries(keys, json_values, max_size=5))
    with pytest.raises(ValidationError) as caught:
        model.model_validate({**values, "no such key": 1})
    for problem in problems(caught.value, model):
        said = problem.text.partition(", got ")[0]
        assert said
        assert not PYDANTIC_WORDS.search(said)
