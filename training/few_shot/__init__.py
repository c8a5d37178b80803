"""Heads that are fitted on the features of a frozen network."""
