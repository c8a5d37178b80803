"""What a network is worth: scores, calibration, gates, and the proof of the exported file."""
