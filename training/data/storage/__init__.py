"""Where images are kept: in memory, on disk, or on the device."""
