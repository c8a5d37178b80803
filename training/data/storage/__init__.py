"""Where images are kept: in memory, on disk, on the device."""
