"""Verify, collect garbage, split and merge."""
