"""The metrics as a scraper sees them."""

import re

from prometheus_client import generate_latest

from serving.metrics import Metrics

LARGEST_BATCH = 1024


def test_every_metric_of_ours_says_its_program_its_unit_and_its_meaning() -> None:
    """Prometheus naming: a prefix, base units, _total for what only grows; and a sentence of help."""
    families = [each for each in Metrics().registry.collect() if each.name.startswith("lenserve")]
    assert len(families) >= 10
    for family in families:
        assert re.fullmatch(r"lenserve_[a-z_]+", family.name)
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_size")), family.name


def test_two_servers_in_one_process_do_not_mix() -> None:
    """Each has a registry of its own."""
    first, second = Metrics(), Metrics()
    first.images.labels("digits", "1", "OK").inc(3)
    labels = {"model": "digits", "version": "1", "outcome": "OK"}
    assert first.registry.get_sample_value("lenserve_images_total", labels) == 3
    assert second.registry.get_sample_value("lenserve_images_total", labels) is None


def test_the_largest_batch_has_a_bucket_of_its_own() -> None:
    """Batches of every allowed size are told apart by power of two; none falls into +Inf."""
    metrics = Metrics()
    metrics.batch_size.labels("digits", "1").observe(LARGEST_BATCH)
    labels = {"model": "digits", "version": "1", "le": f"{LARGEST_BATCH}.0"}
    assert metrics.registry.get_sample_value("lenserve_batch_size_bucket", labels) == 1


def test_the_text_of_a_scrape_has_the_process_too() -> None:
    """Memory and CPU of the process come with ours."""
    text = generate_latest(Metrics().registry).decode()
    assert "process_resident_memory_bytes" in text
    assert "python_info" in text
    assert "lenserve_ready 0.0" in text
