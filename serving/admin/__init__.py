"""The HTTP port of operators: metrics and probes."""
