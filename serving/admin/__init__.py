"""The HTTP port for operators: metrics and probes."""
