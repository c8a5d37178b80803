"""pydantic's validation errors in plain English: the key, the value, the limit."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, RootModel, ValidationError

_NEAR = 0.7  # difflib ratio above which an unknown key is a typo
_MOST_PROBLEMS = 3  # problems in one line; the rest is counted
_MOST_CHARACTERS = 60  # characters of a value
_KEY_OF_MAPPING = "[key]"  # pydantic's last part of a location if a mapping's key is wrong, not its value

Details = Mapping[str, Any]

_INTEGER = "must be a whole number, got {value}"
_NUMBER = "must be a number, got {value}"
_SWITCH = "must be true or false, got {value}"
_DATE = "must be a date such as 2026-01-31, got {value}"
_TIME = "must be a date and time such as 2026-01-31T12:00:00Z, got {value}"
_LIST = "must be a list, got {value}"
_KEYS = "must be keys with values, got {value}"

# Keyed by pydantic's error types (https://docs.pydantic.dev/latest/errors/validation_errors/). The tests
# check that every type our models can raise is here.
SENTENCES: Mapping[str, str] = {
    "missing": "missing; add it",
    "greater_than": "must be greater than {gt}, got {value}",
    "greater_than_equal": "must be at least {ge}, got {value}",
    "less_than": "must be less than {lt}, got {value}",
    "less_than_equal": "must be at most {le}, got {value}",
    "multiple_of": "must be a multiple of {multiple_of}, got {value}",
    "finite_number": "must be a finite number, got {value}",
    "int_type": _INTEGER,
    "int_parsing": _INTEGER,
    "int_from_float": _INTEGER,
    "int_parsing_size": "must have at most 4300 digits, got {value}",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "string_type": "must be text, got {value}",
    "string_unicode": "must be text in UTF-8, got {value}",
    "string_pattern_mismatch": "must match the regular expression {pattern}, got {value}",
    "string_too_short": "must have at least {min_length} characters, got {value}",
    "string_too_long": "must have at most {max_length} characters, got {value}",
    "literal_error": "must be {expected}, got {value}",
    "path_type": "must be a path, got {value}",
    "date_type": _DATE,
    "date_parsing": _DATE,
    "date_from_datetime_parsing": _DATE,
    "date_from_datetime_inexact": _DATE,
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "datetime_object_invalid": _TIME,
    "tuple_type": _LIST,
    "list_type": _LIST,
    "too_short": "must have at least {min_length} entries, has {actual_length}",
    "too_long": "must have at most {max_length} entries, has {actual_length}",
    "dict_type": _KEYS,
    "mapping_type": _KEYS,
    "model_type": _KEYS,
    "model_attributes_type": _KEYS,
    "json_invalid": "not valid JSON: {error}",
}

OWN_WORDS = frozenset({"value_error", "assertion_error"})  # raised by our validators

# Numbers from the command line are strings; if they are compared as numbers, they are shown without quotes.
_COMPARED = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One key that failed validation."""

    key: str  # dotted path, such as "training.epochs" or "labels[2]"; empty: values contradict each other
    kind: Literal["missing", "unknown", "invalid"]
    text: str  # "must be at most 9, got 10": the rest of the sentence, without the key
    nearest: str = ""  # for an unknown key: the known key that was probably meant

    def __str__(self) -> str:
        if self.kind == "unknown":
            return self.text
        return f"{self.key}: {self.text}" if self.key else self.text


def problems(error: ValidationError, model: type[BaseModel] | None = None) -> list[Problem]:
    """Describe each key that failed validation.

    Args:
        error: pydantic's error.
        model: the validated class; unknown keys are compared with its keys.
    """
    known = list(known_keys(model)) if model else []
    return [_problem(each, known) for each in error.errors(include_url=False)]


def describe(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Describe the first problems in one line: `labels: missing; add it`, joined by semicolons.

    Args:
        error: pydantic's error.
        model: the validated class; unknown keys are compared with its keys.
    """
    lines = [str(problem) for problem in problems(error, model)]
    more = len(lines) - _MOST_PROBLEMS
    return "; ".join(lines[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def matching(pattern: str | re.Pattern[str], allowed: str) -> AfterValidator:
    """Constrain a string to a pattern; the error describes the pattern in words.

    Args:
        pattern: a regular expression that the whole string must match.
        allowed: completes "must be ...", for example "auto, cpu, cuda or cuda:N".
    """

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {allowed}, got {_shown(text)}")
        return text

    return AfterValidator(check)


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a model, sections before their keys."""
    if issubclass(model, RootModel):
        return
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        for annotation in (field.annotation, *get_args(field.annotation)):
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from known_keys(annotation, f"{key}.")


def nearest(key: str, known: list[str]) -> str:
    """Return the known key that was probably meant, or nothing. Keys of the same section take precedence."""
    section, _, name = key.rpartition(".")
    siblings = [each for each in known if each.rpartition(".")[0] == section]
    for candidates in (siblings, known):
        by_name = {each.rpartition(".")[2]: each for each in reversed(candidates)}
        if close := difflib.get_close_matches(name, list(by_name), n=1, cutoff=_NEAR):
            return by_name[close[0]]
    return ""


def _problem(error: Details, known: list[str]) -> Problem:
    kind, location = error["type"], list(error["loc"])
    if kind == "missing":
        return Problem(_dotted(location), "missing", SENTENCES[kind])
    if kind == "extra_forbidden":
        key = _dotted(location)
        suggestion = nearest(key, known)
        hint = f"did you mean {suggestion!r}?" if suggestion else "remove it"
        return Problem(key, "unknown", f"unknown key {_shown(key)}; {hint}", suggestion)
    subject = ""
    if location and location[-1] == _KEY_OF_MAPPING:
        location.pop()
        subject = "the key "
    return Problem(_dotted(location), "invalid", subject + _sentence(kind, error))


def _sentence(kind: str, error: Details) -> str:
    details = dict(error.get("ctx", {}))
    if kind in OWN_WORDS:
        return str(details["error"])
    if kind == "literal_error":
        details["expected"] = details["expected"].replace("'", "")
    show = _plain if kind in _COMPARED else _shown
    template = SENTENCES.get(kind, "must be valid, got {value}")
    return template.format(
        value=show(error["input"]), **{name: _limit(each) for name, each in details.items()}
    )


def _dotted(location: list[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _limit(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _plain(value: object) -> str:
    return _shortened(str(value))


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "keys with values"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
