"""The queue of one version: which waiting requests run together."""
