"""A run from beginning to end, and who watches it."""
