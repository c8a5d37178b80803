"""The metrics of the server: counters, their Prometheus families, and Triton's statistics."""
