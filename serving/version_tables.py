"""Versions of a model, their facts and the changes of its aliases, as tables of the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from serving.bundle import AliasChange, Bundle
from serving.metrics.live_answers import LiveAnswers

_COUNTS = ("parameters", "test_images", "size_bytes")


def facts(bundle: Bundle) -> dict[str, Any]:
    """Return what the manifest says of a version, as JSON values."""
    manifest = bundle.manifest
    made, tested, gate = manifest.provenance, manifest.evaluation, manifest.gate
    return {
        "created_at": made.created_at.isoformat(timespec="seconds"),
        "created_by": made.created_by,
        "recipe": made.recipe,
        "recipe_digest": made.recipe_digest,
        "data_digest": made.data_digest,
        "framework": made.framework,
        "imported": sorted(made.imported.files) if made.imported else [],
        "parameters": made.parameters,
        "labels": len(manifest.labels),
        "input": list(manifest.geometry.shape),
        "accuracy": tested and tested.accuracy.value,
        "accuracy_low": tested and tested.accuracy.low,
        "accuracy_high": tested and tested.accuracy.high,
        "ece": tested and tested.ece,
        "test_images": tested.images if tested else 0,
        "variants": sorted(manifest.variants),
        "verdict": gate and gate.verdict,
        "champion": gate and gate.champion,
        "forced": gate and gate.forced,
        "reasons": list(gate.reasons) if gate else [],
        "size_bytes": sum(file.size_bytes for file in manifest.files.values()),
        "digest": bundle.digest,
    }


def all_models(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line for each model: the version that is served by default, and facts of its newest."""
    table = Table(box=None, pad_edge=False)
    for column in ("model", "served", "versions", "newest", "created", "verdict"):
        table.add_column(column, overflow="fold")
    for row in rows:
        unserved = "unknown" if "error" in row else "none"
        served = f"{row['served'] or unserved}{_why_served(row)}"
        head = escape(row["model"]), served, str(row["versions"]), str(row["newest"] or "")
        if "error" in row:
            table.add_row(*head, f"[red]{escape(row['error'])}[/red]")
            continue
        table.add_row(*head, row["created_at"], _verdict(row))
    return table


def _why_served(row: Mapping[str, Any]) -> str:
    """Say what makes a version the default: a server that cannot load it serves another one."""
    if row["stable"]:
        return " (stable)"
    if not row["served"]:
        return ""
    return " (newest)" if row["served"] == row["newest"] else " (newest intact)"


def all_versions(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line for each version."""
    table = Table(box=None, pad_edge=False)
    has_live = any("live" in row for row in rows)
    live_columns = ("answered", "drift") if has_live else ()
    columns = (
        "version",
        "aliases",
        "created",
        "by",
        "recipe",
        "accuracy",
        *live_columns,
        "verdict",
        "data",
        "digest",
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        head = str(row["version"]), escape(", ".join(row["aliases"]))
        if "error" in row:
            table.add_row(*head, f"[red]cannot be trusted: {escape(row['error'])}[/red]")
            continue
        table.add_row(
            *head,
            row["created_at"],
            escape(row["created_by"] or ""),
            escape(row["recipe"]),
            "not measured" if row["accuracy"] is None else f"{row['accuracy']:.2%} of {row['test_images']:,}",
            *(_live_cells(row["live"]) if has_live else ()),
            _verdict(row),
            row["data_digest"][:12],
            row["digest"][:12],
        )
    return table


def _verdict(row: Mapping[str, Any]) -> str:
    return (row["verdict"] or "") + (" (forced)" if row["forced"] else "")


def _live_cells(live: LiveAnswers) -> tuple[str, str]:
    """Return how many images a version answered, and its largest drift."""
    return f"{live.images:,}", f"{max(live.drift.values()):.3f}" if live.drift else ""


def versions_side_by_side(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return every fact of one version, or of several, of which those that differ are bold."""
    shown = [dict(_shown_facts(row)) for row in rows]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in dict.fromkeys(name for facts_of_one in shown for name in facts_of_one):
        values = [facts_of_one.get(name, "") for facts_of_one in shown]
        table.add_row(*map(escape, (name, *values)), style="bold" if len(set(values)) > 1 else "")
    return table


def _shown_facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in row.items():
        if isinstance(value, LiveAnswers):
            yield from value.lines()
        elif value not in ([], None):
            yield name.replace("_", " "), _shown(name, value)


def _shown(name: str, value: object) -> str:
    """Return a fact for people: rounded, where --json has every digit."""
    if isinstance(value, list):
        return ("; " if name == "reasons" else ", ").join(map(str, value))
    if isinstance(value, float):
        return f"{value:.2%}" if name.startswith("accuracy") else f"{value:.4f}"
    return f"{value:,}" if name in _COUNTS else str(value)


def changes_table(changes: Sequence[AliasChange]) -> Table:
    """Return a line for each change of an alias."""
    table = Table(box=None, pad_edge=False)
    for column in ("when", "by", "action", "alias", "before", "version", "reason"):
        table.add_column(column, overflow="fold")
    for change in changes:
        table.add_row(
            change.at.isoformat(timespec="seconds"),
            escape(change.by),
            change.action,
            escape(change.alias),
            str(change.before or ""),
            str(change.version or ""),
            escape(change.reason),
        )
    return table
