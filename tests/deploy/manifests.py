"""The manifests of deploy/, as values: each as written, and as kubectl renders them."""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rules import DEPLOY

Manifest = dict[str, Any]
KUSTOMIZED = ("kubernetes/base", "kubernetes/example", "kserve", "kubeflow")
WRITTEN = sorted(
    path
    for folder in ("kubernetes", "kserve", "kubeflow")
    for path in (DEPLOY / folder).rglob("*.yaml")
    if path.name != "kustomization.yaml"
)
RESOURCES: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "custom_resources.yaml").read_text(encoding="utf-8")
)


def read(path: Path) -> list[Manifest]:
    """The documents of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def written() -> list[Manifest]:
    """All resources, before anything is set in them."""
    return [manifest for path in WRITTEN for manifest in read(path)]


def of_kind(kind: str, manifests: list[Manifest]) -> list[Manifest]:
    """Those of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


@functools.cache
def rendered(folder: Path) -> str:
    """What `kubectl apply -k` would send; skip the test where kubectl is not installed."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on the PATH: `make check-deploy` installs it")
    done = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and pod specification of everything that starts pods."""
    for manifest in manifests:
        kind = manifest["kind"]
        paths = {
            "Deployment": [["spec", "template", "spec"]],
            "CronJob": [["spec", "jobTemplate", "spec", "template", "spec"]],
        } | {name: resource["pods"] for name, resource in RESOURCES.items()}
        for path in paths.get(kind, []):
            yield kind, functools.reduce(lambda value, key: value[key], path, manifest)
