"""Fetch: sources become images in the cache."""
