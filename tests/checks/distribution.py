"""`make check`: builds the sdist and the wheel, and checks contents, metadata, README and the base install.

Needs no network. The base install is the wheel beside links to the installed files of the packages that it
requires: what only an extra requires cannot be imported there, and `importlib.metadata` does not see it.
"""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from readme_renderer import markdown

from serving import __version__

ROOT = Path(__file__).parents[2]
EXTRAS = {"serve", "serve-cpu", "train", "import", "batch", "ray", "s3", "tensorboard", "mlflow", "cuda"}
NOT_IN_BASE = ("onnxruntime", "onnxruntime-gpu", "torch", "uvloop")


def main() -> None:
    """Build and check; the first difference ends the program with one line."""
    with TemporaryDirectory(prefix="lenserve-dist-") as folder:
        sdist, wheel = build(Path(folder))
        check_sdist(sdist)
        check_wheel(wheel)
        described = check_metadata(wheel)
        base = Path(folder) / "base"
        make_base_install(base, wheel, described)
        check_base_install(base)
        print(f"{wheel.name} ({wheel.stat().st_size / 1e3:.0f} kB) and {sdist.name} are as they should be")


def expect(holds: object, problem: str) -> None:
    """End the program where something does not hold."""
    if not holds:
        sys.exit(f"distribution: {problem}")


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, of the files that git knows or would add."""
    listed = run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT).stdout
    source = folder / "source"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source], cwd=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path) -> None:
    """Everything that builds the wheel, and no tests."""
    with tarfile.open(sdist) as archive:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    for name in ("pyproject.toml", "README.md", "LICENSE", "PKG-INFO", *package_files()):
        expect(name in names, f"{sdist.name} lacks {name}")
    for name in names:
        expect(
            PurePosixPath(name).parts[:1] not in {("tests",), ("shared",), ("docs",)},
            f"{sdist.name} holds {name}",
        )


def check_wheel(wheel: Path) -> None:
    """Exactly the files of both packages, the license, and the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = f"lenserve-{__version__}.dist-info"
    own = {name for name in names if not name.startswith(f"{information}/")}
    expected = set(package_files())
    expect(not expected - own, f"{wheel.name} lacks {', '.join(sorted(expected - own))}")
    expect(not own - expected, f"{wheel.name} holds {', '.join(sorted(own - expected))}")
    expect(f"{information}/licenses/LICENSE" in names, f"{wheel.name} lacks the license")


def package_files() -> Iterator[str]:
    """What git knows, or would add, of both packages: code, stubs, recipes and lists."""
    listed = run(["git", "ls-files", "-co", "--exclude-standard", "serving", "training"], cwd=ROOT).stdout
    for name in listed.split():
        if (ROOT / name).is_file() and not name.endswith(".md"):
            yield name


def check_metadata(wheel: Path) -> Message:
    """Version, Python, license, extras and README, as an index would read them."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"lenserve-{__version__}.dist-info/METADATA").decode()
    described = Parser().parsestr(text)
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for key, value in {
        "Name": "lenserve",
        "Version": __version__,
        "Requires-Python": stated["requires-python"],
        "License-Expression": "Apache-2.0",
        "License-File": "LICENSE",
        "Summary": stated["description"],
        "Description-Content-Type": "text/markdown",
    }.items():
        expect(described[key] == value, f"{wheel.name} states {key}: {described[key]}, not {value}")
    extras = set(described.get_all("Provides-Extra") or ())
    expect(extras == EXTRAS, f"{wheel.name} has the extras {sorted(extras)}, not {sorted(EXTRAS)}")
    page = markdown.render(str(described.get_payload()))
    expect(page and "<h1" in page, "README.md does not render as Markdown")
    return described


def make_base_install(base: Path, wheel: Path, described: Message) -> None:
    """A folder that holds the wheel, and what `pip install lenserve` would bring."""
    requirements = [Requirement(text) for text in described.get_all("Requires-Dist") or ()]
    for distribution in closure(requirements):
        for file in distribution.files or ():
            target = Path(str(distribution.locate_file(file)))
            if ".." in file.parts or not target.is_file():
                continue  # scripts
            link = base / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(base)  # noqa: S202  # our own wheel


def closure(requirements: Iterable[Requirement]) -> list[metadata.Distribution]:
    """The installed distributions that the requirements need, without extras."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(each, "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found[name] = distribution = metadata.distribution(requirement.name)
        needed = [Requirement(text) for text in distribution.requires or ()]
        waiting += [(each, extra) for each in needed for extra in ("", *requirement.extras)]
    for unwanted in NOT_IN_BASE:
        expect(unwanted not in found, f"the base install requires {unwanted}")
    return list(found.values())


def check_base_install(base: Path) -> None:
    """The client and the bundle can be imported, and each program answers or says what to install."""
    imported = in_base(base, "import serving.client, serving.bundle; print(serving.__file__)")
    expect(imported.returncode == 0, f"the base install cannot be imported: {imported.stderr}")
    expect(imported.stdout.startswith(str(base)), f"not the wheel was imported but {imported.stdout}")
    for command, code, said in (
        ("lenserve --version", 0, f"lenserve {__version__}"),
        ("lenserve --help", 0, "usage: lenserve COMMAND"),
        ("lenserve bench --help", 0, "usage: lenserve bench"),
        ("lenserve models list --repository .", 0, "has no models yet"),
        ("lenserve classify --model m --server 127.0.0.1:1 gone.png", 2, "gone.png"),
        ("lenserve bench --model m --server 127.0.0.1:1", 1, "lenserve bench: "),
        ("lenserve serve --repository .", 2, "pip install '.[serve]'"),
        ("lenserve batch . --model m --repository . --output o", 2, "pip install '.[serve]'"),
        ("lenserve-train --help", 0, "usage: lenserve-train COMMAND"),
        ("lenserve-train recipes --json", 0, "lenet5-digits"),
        ("lenserve-train run lenet5-digits", 2, "pip install '.[serve,train]'"),
        ("lenserve-train layers lenet5", 2, "pip install '.[serve,train]'"),
        ("lenserve-train find-rate lenet5-digits", 2, "pip install '.[serve,train]'"),
        ("lenserve-train evaluate .", 2, "pip install '.[serve,train]'"),
    ):
        program, *arguments = command.split()
        done = in_base(
            base,
            "import sys; from importlib.metadata import distribution; "
            f"entry = distribution('lenserve').entry_points.select(name={program!r}); "
            f"sys.exit(next(iter(entry)).load()({arguments!r}))",
        )
        output = done.stdout + done.stderr
        expect(
            (done.returncode, said in output) == (code, True),
            f"`{command}` exits with {done.returncode}: {output}",
        )
        expect("Traceback" not in output, f"`{command}` shows a traceback: {output}")
        expect(code != 2 or done.stderr.count("\n") == 1, f"`{command}` shows more than one line: {output}")


def in_base(base: Path, code: str) -> "subprocess.CompletedProcess[str]":
    """Run code that sees the standard library and the base install alone."""
    # -S: without the packages of this environment.
    return subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=base.parent,
        env={"PYTHONPATH": str(base), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def run(command: list[object], cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program that must succeed."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    expect(
        done.returncode == 0,
        f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}",
    )
    return done


if __name__ == "__main__":
    main()
