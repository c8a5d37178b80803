"""Several processes as one server: a supervisor, workers, and one that owns the device."""
