"""Manifests for Kubernetes, KServe and Kubeflow: rendered, valid, safe, and in agreement with the server."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from serving.metrics.families import MetricFamilies
from serving.settings import ServerSettings
from tests.deploy.manifests import KUSTOMIZED, RESOURCES, of_kind, pods, rendered, written
from tests.deploy.rules import DEPLOY, groups

CRDS_VARIABLE = "LENSERVE_CRDS"
# https://github.com/distribution/reference: a path has no capitals, so this can never be pulled by accident.
IMAGE_PATH = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
# A file of a page: a block of YAML whose first line is a comment with its path.
OVERLAY = re.compile(r"^```yaml\n# (\S+/kustomization\.yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAME_DUCK_S = 5.0  # of serving.Dockerfile


@pytest.mark.parametrize("folder", KUSTOMIZED)
def test_everything_renders_and_is_valid(folder: str, tmp_path: Path) -> None:
    """Built-in kinds strictly against the schemas of Kubernetes itself: an unknown key is an error."""
    assert_valid(rendered(DEPLOY / folder), tmp_path)


def assert_valid(text: str, tmp_path: Path) -> None:
    """Skip the test where there is no validator."""
    program = shutil.which("kubernetes-validate")
    if program is None:
        pytest.skip("no kubernetes-validate on the PATH: `make check-deploy` installs it")
    manifests = [each for each in yaml.safe_load_all(text) if each["kind"] not in RESOURCES]
    manifests += [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": kind.lower()}, "spec": _pod(spec)}
        for kind, spec in pods(list(yaml.safe_load_all(text)))
    ]
    if not manifests:
        return
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(manifests))
    done = subprocess.run(
        [program, "--strict", tmp_path / "all.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARN" not in done.stdout, done.stdout


def _pod(spec: dict[str, Any]) -> dict[str, Any]:
    """The part of a KServe runtime that is a pod's."""
    return {key: value for key, value in spec.items() if key in _POD_KEYS}


_POD_KEYS = {"automountServiceAccountToken", "containers", "securityContext", "volumes"}


@pytest.mark.parametrize("kind", RESOURCES)
def test_custom_resources_say_what_their_definitions_allow(kind: str) -> None:
    """Against the schemas written down in custom_resources.yaml."""
    resource = RESOURCES[kind]
    schema = {
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": resource["apiVersion"]},
            "kind": {"const": kind},
            "metadata": {},
            "spec": resource["spec"] | {"additionalProperties": False},
        },
    }
    manifests = of_kind(kind, written())
    assert manifests
    for manifest in manifests:
        jsonschema.validate(manifest, schema)


def test_custom_resources_are_valid_by_whole_definitions() -> None:
    """With the CustomResourceDefinitions in a folder, strictly: an unknown key is an error."""
    folder = os.environ.get(CRDS_VARIABLE)
    if folder is None:
        pytest.skip(f"set {CRDS_VARIABLE} to a folder of the definitions that custom_resources.yaml names")
    schemas = {
        (f"{definition['spec']['group']}/{version['name']}", definition["spec"]["names"]["kind"]): version[
            "schema"
        ]["openAPIV3Schema"]
        for path in Path(folder).glob("*.yaml")
        for definition in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if definition
        for version in definition["spec"]["versions"]
    }
    checked = [each for each in written() if each["kind"] in RESOURCES]
    for manifest in checked:
        schema = _strict(schemas[manifest["apiVersion"], manifest["kind"]])
        schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
        jsonschema.validate(manifest, schema)
    assert {each["kind"] for each in checked} == set(RESOURCES)


def _strict(schema: Any) -> Any:  # noqa: ANN401 - JSON
    """Turn an OpenAPI schema of Kubernetes into JSON schema without unknown keys."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items() if key != "format"}
    if "(?i)" in str(strict.get("pattern")):  # Go's syntax inside a pattern
        del strict["pattern"]
    if strict.pop("x-kubernetes-int-or-string", False):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in strict and not strict.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


def containers() -> Iterator[dict[str, Any]]:
    """Every container of every manifest."""
    for _, spec in pods(written()):
        yield from spec["containers"]


def test_no_image_can_be_pulled_before_it_is_set() -> None:
    """A forgotten image is an error at once, and never what a stranger has published under its name."""
    images = {container["image"] for container in containers()}
    assert images == {"LENSERVE-IMAGE-NOT-SET", "LENSERVE-TRAINING-IMAGE-NOT-SET"}
    assert not any(IMAGE_PATH.fullmatch(image) for image in images)


def test_an_overlay_sets_every_image() -> None:
    """The example leaves none unset."""
    assert "NOT-SET" not in rendered(DEPLOY / "kubernetes/example")


def test_the_overlays_of_the_page_render_and_set_everything(tmp_path: Path) -> None:
    """Those of deploy/README.md, where it says that they are; and a copy of the example beside it."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    folders = [tmp_path / "deploy" / "kubernetes" / "mine"]
    shutil.copytree(DEPLOY / "kubernetes" / "example", folders[0])
    for name, overlay in OVERLAY.findall(text):
        folders.append((tmp_path / name).parent)
        folders[-1].mkdir(parents=True)
        (tmp_path / name).write_text(overlay, encoding="utf-8")

    assert len(folders) == 3
    for folder in folders:
        assert "NOT-SET" not in rendered(folder)


def test_a_repository_in_an_object_store_needs_no_shared_volume(tmp_path: Path) -> None:
    """Server and training name the store and a cache that they can write; the policy lets servers out."""
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    (tmp_path / "kubernetes" / "mine").mkdir()
    (tmp_path / "kubernetes" / "mine" / "kustomization.yaml").write_text(
        "resources: [../base]\ncomponents: [../training, ../object-store]\n"
    )
    text = rendered(tmp_path / "kubernetes" / "mine")
    assert_valid(text, tmp_path)
    manifests = list(yaml.safe_load_all(text))

    for kind, spec in pods(manifests):
        (container,) = spec["containers"]
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert variables["LENSERVE_REPOSITORY"].startswith("s3://"), kind
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        cache = mounts[variables["LENSERVE_REPOSITORY_CACHE"]]
        assert not cache.get("readOnly"), kind
        (volume,) = (each for each in spec["volumes"] if each["name"] == cache["name"])
        assert "emptyDir" in volume, kind
    (policy,) = of_kind("NetworkPolicy", manifests)
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {53, 443}
    names = [each["metadata"]["name"] for each in of_kind("PersistentVolumeClaim", manifests)]
    assert names == ["lenserve-runs"]


def test_every_container_runs_without_rights() -> None:
    """As Pod Security's level "restricted" asks for, with a numeric user and a read-only root."""
    for kind, spec in pods(written()):
        of_pod = spec.get("securityContext", {})
        for container in spec["containers"]:
            security = of_pod | container["securityContext"]
            assert security["runAsNonRoot"] is True, kind
            assert security["runAsUser"] >= 10_000, kind
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, kind
            assert security["readOnlyRootFilesystem"] is True, kind
            assert security["allowPrivilegeEscalation"] is False, kind
            assert security["capabilities"] == {"drop": ["ALL"]}, kind
            assert container["resources"]["limits"]["memory"], kind


def test_settings_of_the_manifests_exist() -> None:
    """Each variable is one of the server's, and holds a valid value."""
    for container in containers():
        variables = {
            each["name"].removeprefix("LENSERVE_").lower(): each["value"] for each in container.get("env", [])
        }
        settings = ServerSettings.model_validate({"repository": "/models"} | variables)
        assert set(variables) <= set(ServerSettings.model_fields)
        assert all(getattr(settings, name) is not None for name in variables)


def test_a_pod_is_given_the_time_that_draining_takes() -> None:
    """Kubernetes kills only after the lame duck and the drain."""
    (deployment,) = of_kind("Deployment", written())
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > LAME_DUCK_S + ServerSettings.model_fields["drain_timeout_s"].default


def test_everything_finds_the_pods() -> None:
    """Services, disruption budget, network policy and autoscalers name what exists."""
    manifests = written()
    (deployment,) = of_kind("Deployment", manifests)
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    services = of_kind("Service", manifests)
    assert len(services) == 2
    for service in services:
        assert service["spec"]["selector"].items() <= labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        (found,) = of_kind(kind, manifests)
        assert found["spec"][key]["matchLabels"].items() <= labels, kind
    (policy,) = of_kind("NetworkPolicy", manifests)
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == ports
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        (found,) = of_kind(kind, manifests)
        assert found["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_prometheus_scrapes_each_pod_once_as_the_job_of_the_rules() -> None:
    """One of the two services, and its label gives the job's name."""
    manifests = list(yaml.safe_load_all(rendered(DEPLOY / "kubernetes/example")))
    (monitor,) = of_kind("ServiceMonitor", manifests)
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = (
        each for each in of_kind("Service", manifests) if wanted <= each["metadata"]["labels"].items()
    )
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "lenserve"
    assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }


def test_claims_exist() -> None:
    """Every volume of a claim has one."""
    claims = {each["metadata"]["name"] for each in of_kind("PersistentVolumeClaim", written())}
    for kind, spec in pods(written()):
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim["claimName"] in claims, kind


def test_rules_are_the_same_for_the_operator() -> None:
    """The copy in the PrometheusRule has the groups of deploy/prometheus/rules.yaml."""
    (rule,) = of_kind("PrometheusRule", written())
    assert rule["spec"]["groups"] == groups()


def test_the_autoscaler_asks_for_a_metric_that_exists() -> None:
    """KEDA's query names a gauge of the server."""
    (scaled,) = of_kind("ScaledObject", written())
    names = {family.name for family in MetricFamilies().all()}
    for trigger in scaled["spec"]["triggers"]:
        assert set(re.findall(r"lenserve_\w+", trigger["metadata"]["query"])) <= names


def test_kserve_finds_the_port_and_the_format() -> None:
    """A port named grpc, the model's place, and a service that asks for what the runtime offers."""
    (runtime,) = of_kind("ClusterServingRuntime", written())
    (service,) = of_kind("InferenceService", written())
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert [port["name"] for port in container["ports"]] == ["grpc"]
    assert container["args"] == ["{{.Name}}", "/mnt/models"]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = [
        {key: each[key] for key in ("name", "version")} for each in runtime["spec"]["supportedModelFormats"]
    ]
    assert model["modelFormat"] in formats


def test_kubeflow_trains_by_torchrun() -> None:
    """The job asks for the runtime by name; the container and its label are those that Trainer looks for."""
    (runtime,) = of_kind("ClusterTrainingRuntime", written())
    (job,) = of_kind("TrainJob", written())
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    labels = node["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    (_, spec) = next(iter(pods([runtime])))
    assert [(each["name"], each["command"][0]) for each in spec["containers"]] == [("node", "torchrun")]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
