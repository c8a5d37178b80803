"""The rules of deploy/prometheus/rules.yaml, as values, and the same rules with all times shortened."""

import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES_FILE = DEPLOY / "prometheus" / "rules.yaml"


def groups() -> list[dict[str, Any]]:
    """The groups of rules, as written."""
    found: list[dict[str, Any]] = yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))["groups"]
    return found


def alerts() -> dict[str, dict[str, Any]]:
    """Alert -> its rule."""
    return {rule["alert"]: rule for group in groups() for rule in group["rules"] if "alert" in rule}


def expressions() -> dict[str, str]:
    """Name of a recording rule or an alert -> its PromQL."""
    return {
        rule.get("alert") or rule["record"]: rule["expr"] for group in groups() for rule in group["rules"]
    }


def shortened(seconds_of_a_minute: float) -> str:
    """The rules as YAML, with every range, offset and `for` shortened, for a Prometheus of seconds."""

    def short(minutes: str) -> str:
        return f"{int(int(minutes) * seconds_of_a_minute * 1000)}ms"

    text = RULES_FILE.read_text(encoding="utf-8")
    text = re.sub(r"\[(\d+)m\]", lambda found: f"[{short(found[1])}]", text)
    text = re.sub(r"offset (\d+)m", lambda found: f"offset {short(found[1])}", text)
    return re.sub(r"for: (\d+)m", lambda found: f"for: {short(found[1])}", text)
