"""The life cycle of a version: noticed, loaded, proven, swapped in, drained."""
