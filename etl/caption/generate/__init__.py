"""Captioning by transformers' own ``generate()``, a batch at a time."""
