"""The stages: each is a function of the store and its settings, and returns a summary."""
