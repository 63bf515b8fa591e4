"""Stages put together into runs, and one run from its beginning to its end."""
