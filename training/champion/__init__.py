"""Judges a new version, the challenger, against the one that it would replace, the champion."""
