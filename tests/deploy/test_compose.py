"""compose.yaml: valid by the specification's schema, and in agreement with the files that it mounts."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import ServerSettings
from tests.deploy.rules import DEPLOY

COMPOSE = DEPLOY / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]


def test_it_is_valid() -> None:
    """By the schema of the Compose specification."""
    program = shutil.which("check-jsonschema")
    if program is None:
        pytest.skip("no check-jsonschema on the PATH: `make check-deploy` installs it")
    done = subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_file_that_is_mounted_exists() -> None:
    """Docker makes an empty folder of a missing one, and the service fails in a strange way."""
    mounted = [
        volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())
    ]
    files = [each for each in mounted if each.startswith("./")]
    assert len(files) == 4
    assert all((DEPLOY / each).exists() for each in files)
    for service in SERVICES.values():
        assert (DEPLOY / service.get("build", {}).get("dockerfile", "compose.yaml").split("/")[-1]).is_file()


def test_prometheus_scrapes_the_server_by_its_name() -> None:
    """The service's name, the metrics port, and the job that the rules look for."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (names,) = job["dns_sd_configs"]
    assert job["job_name"] == "lenserve"
    assert set(names["names"]) <= set(SERVICES)
    assert names["port"] == ServerSettings.model_fields["http_port"].default
    (mounted,) = (each for each in SERVICES["prometheus"]["volumes"] if each.startswith("./"))
    assert f"--config.file={mounted.split(':')[1]}/prometheus.yaml" in SERVICES["prometheus"]["command"]
    assert all((DEPLOY / "prometheus" / rules).is_file() for rules in config["rule_files"])


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    """The provisioned source is the service, and the dashboard is mounted where it looks."""
    sources = yaml.safe_load((DEPLOY / "grafana" / "datasources.yaml").read_text(encoding="utf-8"))
    (source,) = sources["datasources"]
    assert re.fullmatch(r"http://prometheus:9090", source["url"])
    providers = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yaml").read_text(encoding="utf-8"))
    folder = Path(providers["providers"][0]["options"]["path"])
    targets = {Path(each.split(":")[1]) for each in SERVICES["grafana"]["volumes"]}
    assert folder / "dashboard.json" in targets
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home) in targets


def test_nothing_is_reachable_from_outside() -> None:
    """Ports are bound to this machine; our containers have no rights and a read-only root."""
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if "build" in service:
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
            assert service["tmpfs"] == ["/tmp"], name  # noqa: S108 - of the container


def test_images_of_others_have_a_version() -> None:
    """Never `latest`."""
    foreign = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert all(re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", image) for image in foreign)
