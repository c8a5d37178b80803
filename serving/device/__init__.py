"""One process that owns the device: it runs the networks of all workers, which decode. They share memory."""
