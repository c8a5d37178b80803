"""The life of a version: noticed, loaded, proven, swapped in, drained."""
