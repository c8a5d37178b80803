"""The request queue of one version, and how it forms batches."""
