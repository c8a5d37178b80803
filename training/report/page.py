"""Renders the page as one self-contained HTML file: it loads nothing, and runs no script."""

import base64
import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from training.report.blocks import Page


def render(page: Page) -> str:
    """Render the page."""
    return _environment().get_template("report.html.jinja").render(page=page)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("training.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = _base64
    environment.filters["drawing"] = _drawing
    return environment


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _drawing(content: bytes) -> Markup:
    """An SVG as a part of the page, which needs no namespaces. Matplotlib escapes the labels in it."""
    return Markup(re.sub(r" xmlns(:\w+)?=\"[^\"]*\"", "", content.decode()))  # noqa: S704
