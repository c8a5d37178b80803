"""A run from data to published version, with its folder, display and loggers."""
