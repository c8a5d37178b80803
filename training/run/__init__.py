"""One run from data to published version: its folder, its display, its loggers."""
