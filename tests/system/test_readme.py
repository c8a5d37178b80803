"""README.md and the pages of docs/ stay true: their commands run, their figures are recorded, links hold."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from serving.bundle import Repository
from serving.bundle.operations import history
from tests.colours import write_colours
from tests.serving.importing import foreign_files
from training.recipe import resolve, shipped_names
from training.recipe.measured import read_measured
from training.recipe.results import markdown_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
EVERY_PAGE = (
    {"README.md": README}
    | {f"docs/{name}": text for name, text in PAGES.items()}
    | {"deploy/README.md": (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")}
)

TREE_GROUPS = ("serving/pb/", "tests/deploy/", "tests/serving/", "tests/training/", "tests/system/peers/")
MAKE_VERBS = ("make demo", "make test", "make check")


def test_commands_of_the_readme_train_photographs(
    tmp_path: Path, free_ports: tuple[int, int], data_root: Path
) -> None:
    """Verbatim: `transfer` on real photographs, a server, and both clients. Weights come from disk."""
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    weights = data_root / "weights" / "squeezenet1_1_caffe-bea84200.pth"
    (hub / "squeezenet1_1-b8a52dc0.pth").symlink_to(weights)
    (tmp_path / "photos").symlink_to(data_root / "hymenoptera")
    ants = sorted((data_root / "hymenoptera" / "val" / "ants").iterdir())
    (tmp_path / "new-photos").mkdir()
    for ant in ants[:3]:
        (tmp_path / "new-photos" / ant.name).symlink_to(ant)
    (tmp_path / "photo.jpg").symlink_to(ants[0])
    printed = run_blocks(README, tmp_path, free_ports, TORCH_HOME=str(tmp_path / "torch"))
    assert "published repository/transfer/1" in printed
    assert printed.count("(transfer version 1)") == 3
    assert re.search(r"^(ants|bees) \d+\.\d% version 1$", printed, re.MULTILINE)


def test_commands_of_the_pages_run(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    """Every shell and Python block below docs/ succeeds, page by page, in the folder of the demo."""
    demo = f".venv/bin/python {ROOT / 'tests/system/demo.py'}\n"
    pages = "".join(
        PAGES[name] for name in ("api.md", "bundle.md", "configuration.md", "refresh.md", "operations.md")
    ).replace(loop_of(PAGES["refresh.md"]), "")
    printed = run_blocks(f"```sh\n{demo}```\n{pages}", tmp_path, free_ports)
    assert "the server ended with exit code 0" in printed
    assert '"label": "3"' in printed
    assert "lenserve_images_total" in printed


def test_the_loop_of_the_refresh_page_closes(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    """Train, serve, refuse a worse one, promote a better one, roll back, import, capture, label, train again.

    The commands of the page, with a real server; each answer names the version that should have given it.
    """
    foreign_files.plain(tmp_path / "pets.onnx")
    (tmp_path / "labels.txt").write_text("".join(f"{number}\n" for number in range(foreign_files.CLASSES)))
    printed = run_blocks(loop_of(PAGES["refresh.md"]), tmp_path, free_ports)

    answered = re.findall(r"\((\w+) version (\d+)\)", printed)
    assert [f"{model}@{version}" for (model, version), _ in groupby(answered)] == [
        *("digits@1", "digits@2", "digits@1"),
        "pets@1",
        *("digits@2", "digits@3"),
    ]
    assert printed.count("not published: worse than version 1: accuracy: ") == 1
    repository = Repository(tmp_path / "repository")
    gates = [repository.read("digits", version).manifest.gate for version in repository.versions("digits")]
    assert [gate and (gate.verdict, gate.champion) for gate in gates] == [
        ("promote", None),
        ("promote", 1),
        ("promote", 2),
    ]
    changes = [
        (change.action, change.before, change.version, change.reason)
        for change in history(repository, "digits")
    ]
    assert changes == [
        ("set", None, 1, "promoted by its run"),
        ("set", 1, 2, "promoted by its run"),
        ("rollback", 2, 1, "a drill"),
        ("set", 1, 2, "the drill is over"),
        ("set", 2, 3, "promoted by its run"),
    ]
    clients, labelled = (len(list((tmp_path / name).glob("*/*.png"))) for name in ("clients", "digits"))
    assert labelled > 700 + clients / 2, "a thread captures, and may lag behind the commands"


def test_the_commands_of_capturing_images_run(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    """As many labelled images as the page says are enough to train on; a server takes the options."""
    section = section_of(PAGES["refresh.md"], "Capturing images")
    (train,) = re.findall(r"^lenserve-train run .*", section, re.MULTILINE)
    (serve,) = re.findall(r"^lenserve serve .*", section, re.MULTILINE)
    enough = int(re.findall(r"about (\d+) of each class", section)[0])
    digits = load_digits()
    for label in range(10):
        folder = tmp_path / "capture" / "lenet5-digits" / "labelled" / str(label)
        folder.mkdir(parents=True)
        for number, scan in enumerate(digits.images[digits.target == label][:enough]):
            Image.fromarray((scan * (255 / 16)).astype("uint8")).save(folder / f"{number}.png")
    shorter = "--set variants.precisions=[] --set report.images=none"
    block = f"```sh\n{train} {shorter}\n{serve} --check\n```\n"
    printed = run_blocks(block, tmp_path, free_ports, stop_server=False)
    assert "published .demo/repository/lenet5-digits/1" in printed


def loop_of(page: str) -> str:
    """Return the section of a page that shows the whole loop."""
    return section_of(page, "The whole loop")


def section_of(page: str, heading: str) -> str:
    """Return a section of a page, with its heading."""
    section = re.search(rf"^## {heading}\n.*?(?=^## )", page, re.DOTALL | re.MULTILINE)
    assert section is not None
    return section[0]


def test_commands_of_look_inside_run(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    """A version of the digits, and every picture of it."""
    printed = run_blocks(PAGES["look-inside.md"], tmp_path, free_ports, stop_server=False)
    assert "published repository/lenet5-digits/1" in printed
    named = re.findall(r"-o (\S+\.png)", PAGES["look-inside.md"].partition("## What needs")[0])
    pictures = [name for name in named if name != "FILE.png"]
    assert len(pictures) == 16
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_commands_of_import_run(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    """An export of torch is imported, and what is printed is what the page shows."""
    page = PAGES["import.md"]
    printed = run_blocks(page, tmp_path, free_ports, stop_server=False)
    shown = re.search(r"```text\n(read .*?)```", page, re.DOTALL)
    assert shown is not None
    for line in shown[1].splitlines():
        if "differ from" not in line and "pytorch" not in line:  # vary with the machine
            assert line in printed, line


def test_commands_of_the_batch_page_run(
    tmp_path: Path, free_ports: tuple[int, int], repository: Repository
) -> None:
    """Every source, and Ray where it is installed."""
    repository.publish("transfer", lambda folder: write_colours(folder, rotate=0, lie=False))
    (tmp_path / "photos").mkdir()
    for name, colour in (("a.jpg", (255, 0, 0)), ("b.jpg", (0, 0, 255))):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "photos" / name, quality=100)
    shutil.copy(tmp_path / "photos" / "a.jpg", tmp_path / "photo.jpg")
    (tmp_path / "index.csv").write_text("file\na.jpg\nb.jpg\n")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "photos" / "b.jpg", "b.jpg")
    page = PAGES["batch.md"]
    if find_spec("ray") is None:
        page = re.sub(r"## On Ray\n.*?(?=## )", "", page, flags=re.DOTALL)
    printed = run_blocks(page, tmp_path, free_ports, stop_server=False)
    summaries = re.findall(r"images? with transfer version 1 in", printed)
    assert len(summaries) == page.count("\nlenserve batch ") + 1
    assert "a.jpg red\nb.jpg blue\n" in printed
    assert re.search(r"^7 red \d+\.\d% $", printed, re.MULTILINE)


def run_blocks(
    page: str, folder: Path, ports: tuple[int, int], *, stop_server: bool = True, **environment: str
) -> str:
    """Run the sh and python blocks of a page in their order, on free ports; return their output."""
    (folder / ".venv").symlink_to(sys.prefix)
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"
    script += f'export PATH="{Path(sys.executable).parent}:$PATH"\n'
    for number, (language, text) in enumerate(re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL)):
        block = text
        for documented, free in zip((8001, 8002), ports, strict=True):
            block = block.replace(f":{documented}", f":{free}")
        if language == "python":
            (folder / f"block{number}.py").write_text(block)
            script += f".venv/bin/python block{number}.py\n"
        else:
            script += re.sub(r"^make .*\n", "", block, flags=re.MULTILINE)
    script += "kill %1\nwait %1\n" if stop_server else ""
    settings = {
        "LENSERVE_GRPC_PORT": str(ports[0]),
        "LENSERVE_HTTP_PORT": str(ports[1]),
        "LENSERVE_SERVER": f"127.0.0.1:{ports[0]}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_every_documented_target_is_in_the_makefile() -> None:
    """Every `make` command in the pages exists."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in EVERY_PAGE.items():
        assert set(re.findall(r"`make ([\w-]+)|^make ([\w-]+)", text, re.MULTILINE)) <= {
            pair for verb in targets for pair in ((verb, ""), ("", verb))
        }, name
    assert all(verb in README for verb in MAKE_VERBS)


def test_results_are_those_that_were_recorded() -> None:
    """`make results` writes docs/results.md from the records."""
    table = re.search(r"<!-- results -->\n(.*?)<!-- end of results -->", PAGES["results.md"], re.DOTALL)
    recipes = [resolve(name) for name in shipped_names()]
    assert table is not None
    assert table[1] == markdown_table(recipes, read_measured()) + "\n", "`make results` writes it"


def test_figures_of_the_readme_are_those_of_the_benchmark() -> None:
    """Each figure next to a `make bench` is in the recorded table of docs/performance.md."""
    recorded = PAGES["performance.md"].partition("<!-- table: begin -->")[2]
    facts = [fact for fact in README.split("\n- ") if "make bench ROWS=" in fact]
    assert len(facts) == 3
    for fact in facts:
        for figure in re.findall(r"\d+\.\d+", fact.partition("\n\n")[0]):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", recorded), figure


def test_results_quoted_in_the_readme_are_recorded() -> None:
    """Percentages of the README are in docs/results.md."""
    for figure in re.findall(r"\d\d\.\d\d %", README):
        assert figure.replace(" ", "") in PAGES["results.md"], figure


def test_the_readme_is_short_and_has_pictures() -> None:
    """Under 200 lines; pictures are committed, and small. The drawn one fetches nothing."""
    assert len(README.splitlines()) < 200
    drawn, *screenshots = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    svg = (ROOT / drawn).read_text(encoding="utf-8")
    assert "url(http" not in svg
    assert "@import" not in svg
    assert len(screenshots) == 2
    assert all((ROOT / each).stat().st_size < 80_000 for each in screenshots)


def test_links_are_valid() -> None:
    """Relative links name files, and their anchors headings."""
    for name, text in EVERY_PAGE.items():
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            file = (ROOT / name).parent / target if target else ROOT / name
            assert file.exists(), (name, target)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, (name, target, anchor)


def test_the_tree_names_every_file_with_its_purpose() -> None:
    """Each committed file is in the tree, alone or in its group, with one line of purpose."""
    tree = re.search(r"## Every file in one line\n\n```text\n(.*?)```", PAGES["architecture.md"], re.DOTALL)
    assert tree is not None
    named = _paths(tree[1])
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for file in listed.stdout.split():
        group = next((group for group in TREE_GROUPS if file.startswith(group)), file)
        assert named.get(group), f"{file} has no line in docs/architecture.md"


def _paths(tree: str) -> dict[str, str]:
    """Path -> purpose, from a tree that is indented by four spaces a level."""
    parents: list[str] = []
    paths = {}
    for line in tree.splitlines():
        level = (len(line) - len(line.lstrip())) // 4
        name, _, purpose = line.strip().partition(" ")
        parents = [*parents[:level], name]
        paths["".join(parents)] = purpose.strip()
    return paths
