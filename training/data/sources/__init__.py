"""Data sources, one module each: a new source is a module here and a branch in `training.data`."""
