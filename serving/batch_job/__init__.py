"""Classifies many files with a published version: without a server, resumable, on this machine or on Ray."""
