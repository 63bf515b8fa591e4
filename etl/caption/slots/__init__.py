"""Captioning in slots (continuous batching), each as long as its own caption."""
