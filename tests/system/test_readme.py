"""README.md and docs/architecture.md cannot rot: the commands are run, and the tree is the tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

from training.recipe import resolve, shipped_names
from training.recipe.measured import read_measured
from training.recipe.results import markdown_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

TREE_GROUPS = ("serving/pb/", "tests/serving/", "tests/training/", "tests/system/peers/")
MAKE_VERBS = ("make demo", "make test", "make check")


def test_commands_of_the_readme_run_in_their_order(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    """Every command of the page's shell and Python blocks succeeds, in the folder that the demo leaves."""
    blocks = re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL)
    shell = "".join(text for language, text in blocks if language == "sh" and not text.startswith("make"))
    python = "".join(text for language, text in blocks if language == "python")
    assert "lenserve serve" in shell
    assert "client.classify(" in python
    (tmp_path / "client.py").write_text(python)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = f"""
        set -euo pipefail
        trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
        .venv/bin/python {ROOT / "tests/system/demo.py"}
        {shell}
        .venv/bin/python client.py
        kill %1
        wait %1
    """
    for documented, free in zip((8001, 8002), free_ports, strict=True):
        script = script.replace(str(documented), str(free))
        (tmp_path / "client.py").write_text(
            (tmp_path / "client.py").read_text().replace(str(documented), str(free))
        )
    ports = {"LENSERVE_GRPC_PORT": str(free_ports[0]), "LENSERVE_HTTP_PORT": str(free_ports[1])}
    environment = (
        os.environ | ports | {"LENSERVE_SERVER": f"127.0.0.1:{free_ports[0]}", "PYTHONPATH": str(ROOT)}
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "lenserve_images_total" in done.stdout
    assert "the server ended with exit code 0" in done.stdout


def test_every_verb_of_the_readme_is_a_target_of_the_makefile() -> None:
    """What the page tells people to make can be made."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {verb.split()[1] for verb in re.findall(r"make \w+", README)} - {"it"} <= set(targets)
    assert all(verb in README for verb in MAKE_VERBS)


def test_results_of_the_readme_are_those_that_were_recorded() -> None:
    """Nobody types them: the table is what the records give now."""
    table = re.search(r"<!-- results -->\n(.*?)<!-- end of results -->", README, re.DOTALL)
    recipes = [resolve(name) for name in shipped_names()]
    assert table is not None
    assert table[1] == markdown_table(recipes, read_measured()) + "\n", "`make results` writes it"


def test_the_tree_names_every_file_with_its_purpose() -> None:
    """Each committed file stands in the tree, alone or in its group, with one line of purpose."""
    tree = re.search(r"## Every file in one line\n\n```text\n(.*?)```", ARCHITECTURE, re.DOTALL)
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
