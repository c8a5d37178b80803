"""The error tree: its drawing matches the code, and every reason is machine-readable."""

import inspect
import re

import pytest

from serving import errors
from serving.errors import LenserveError

CLASSES: dict[str, type[LenserveError]] = {
    name: member
    for name, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, LenserveError)
}
LINE = re.compile(r"^(?P<indent> *)(?P<name>[A-Z][A-Za-z]+)(?: {2,}\S.*)?$")


def drawn_tree() -> dict[str, str | None]:
    """The tree of the module's docstring: name -> name of its parent."""
    _, _, drawing = (errors.__doc__ or "").partition("\n\n")
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in drawing.strip("\n").splitlines():
        drawn = LINE.match(line)
        assert drawn, line
        depth, rest = divmod(len(drawn["indent"]), 4)
        assert rest == 0, line
        del path[depth:]
        assert len(path) == depth, line
        parents[drawn["name"]] = path[-1] if path else None
        path.append(drawn["name"])
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    """Every class is drawn exactly once, under its parent."""
    real = {
        name: None if error is LenserveError else error.__bases__[0].__name__
        for name, error in CLASSES.items()
    }
    assert drawn_tree() == real
    assert all(len(error.__bases__) == 1 for error in CLASSES.values())
    assert LenserveError.__bases__ == (Exception,)


def test_parents_are_drawn_and_defined_before_their_children() -> None:
    """The drawing and the code have the same order."""
    in_code = sorted(CLASSES, key=lambda name: inspect.getsourcelines(CLASSES[name])[1])
    assert list(drawn_tree()) == in_code


@pytest.mark.parametrize("name", CLASSES)
def test_reasons_are_upper_snake_case(name: str) -> None:
    """A reason is the class name: ImageTooLarge is IMAGE_TOO_LARGE."""
    reason = CLASSES[name]("whatever").reason
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason)
    assert "".join(word.capitalize() for word in reason.split("_")) == name


def test_reasons_are_distinct() -> None:
    """Programs can distinguish all kinds of errors."""
    assert len({error("whatever").reason for error in CLASSES.values()}) == len(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_says_when_it_is_raised(name: str) -> None:
    """Every class has a docstring, and keeps its message unchanged."""
    assert CLASSES[name].__dict__.get("__doc__")
    assert str(CLASSES[name]("image is 9.4 MB, limit is 8.0 MB")) == "image is 9.4 MB, limit is 8.0 MB"


def test_errors_are_independent_of_status_codes() -> None:
    """Status codes are in one table elsewhere: this module imports no transport."""
    assert [name for name, member in vars(errors).items() if inspect.ismodule(member)] == ["re"]
