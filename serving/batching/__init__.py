"""The queue of one version: which queued requests run together."""
