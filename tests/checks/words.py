"""`make check`: finds wording that reads as a translation, and names a better one.

Searches what users and readers see: strings and comments of serving/ and training/, README.md and docs/.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

_IS = r"(?<![Tt]here)\s(?:is|are|was|were)"
_COMPARED = "(?:longer|more|less|fewer|other|better|worse|faster|slower|larger|smaller|brighter|darker)"

# Regular expression -> better wording. A space matches a line break too.
PATTERNS = {
    rf"{_IS} no (?!{_COMPARED}\b)[a-z]+": "is not a ..., has no ..., there is no ...",
    rf"{_IS} none\b": "is missing, is invalid, there is none",
    r"\bcannot be had\b": "could not be downloaded, is not available",
    r"\b(?:whoever|somebody|nobody|who comes first)\b": "name the client, the worker, the user",
    r"\bA class because\b": "say what it does; give the reason only where it surprises",
    r"\btaken for\b": "true 3, predicted 9",
    r"\bwhether or not\b": "whether",
    r"\b(?:comes?|came) to its\b": "trains, fits or loads",
    r"\bno (?:longer a )?number\b": "became NaN or infinite",
    r"\bby their names?\b": "by name",
    r"\bright (?:on the test|label among)": "test accuracy, top-5 accuracy",
    r"(?:,|[a-z]+/\S+) say(?=[;,.)])": "for example, such as",
    r"\b(?:is|are|was|were) (?:told|heeded)\b": "receives, applies, is set to",
    r"\bthe (?:way out|door)\b": "the output, admission control",
    r"\bowner of the device\b": "device server",
    r"\b(?:seat|player|tally|tallies|dealing)s?\b": "worker socket, worker, counters, connection passing",
    r"\b[Kk]nows? (?:no|nothing)\b": "independent of, has no",
    r"\bin vain\b": "without success",
    r"\bof (?:its|their) own\b": "separate",
    r"\bso many\b(?! that)": "this number of",
    r"\bby (?:itself|themselves)\b": "automatically, alone",
    r"\bcleverness\b": "state the measured gain",
    r"\bmend(?:s|ed)?\b": "correct, repair",
    r"\b(?:shall|anew|in the midst)\b": "must or will, again, during",
    r"\b(?:Input should|String should|Value error|Field required|Extra inputs)\b": (
        "describe(...) of serving.validation_errors"
    ),
}


def main() -> None:
    """Print each place with its pattern and the better wording; exit with 1 if there is any."""
    found = 0
    for file in files():
        for line, text in texts(file):
            for place, better, words in matches(text):
                found += 1
                print(f"{file.relative_to(ROOT)}:{line + place}: {words!r}; better: {better}")
    if found:
        sys.exit(f"words: {found} places read as a translation; see PATTERNS in tests/checks/words.py")


def files() -> Iterator[Path]:
    """Every file with text for users or readers."""
    for folder in ("serving", "training"):
        yield from (file for file in sorted((ROOT / folder).rglob("*.py")) if "pb" not in file.parts)
        yield from sorted((ROOT / folder).rglob("*.toml"))
        yield from sorted((ROOT / folder).rglob("*.md"))
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """The first line's number, and the text that begins there."""
    if file.suffix == ".py":
        yield from python_texts(file)
    else:
        yield 1, file.read_text(encoding="utf-8")


def python_texts(file: Path) -> Iterator[tuple[int, str]]:
    """String literals, adjacent ones joined; and runs of comment lines, without #."""
    yield from literals(ast.parse(file.read_text(encoding="utf-8")))
    run: list[str] = []
    last = 0
    with tokenize.open(file) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type != tokenize.COMMENT:
                continue
            if run and token.start[0] > last + 1:
                yield last - len(run) + 1, "\n".join(run)
                run = []
            run.append(token.string.lstrip("#: "))
            last = token.start[0]
    if run:
        yield last - len(run) + 1, "\n".join(run)


def literals(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Every string below a node; an f-string as one text, with {} for its values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif isinstance(node, ast.JoinedStr):
        yield (
            node.lineno,
            "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
        )
    else:
        for child in ast.iter_child_nodes(node):
            yield from literals(child)


def matches(text: str) -> Iterator[tuple[int, str, str]]:
    """Line within the text, better wording, and the words that were found."""
    for pattern, better in PATTERNS.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), text):
            yield text.count("\n", 0, match.start()), better, " ".join(match[0].split())


if __name__ == "__main__":
    main()
