"""Scores, calibration, gates, and the proof of the exported file."""
