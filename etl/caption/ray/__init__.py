"""Captioning on a Ray cluster.

captioner    the backend: a `Captioner` over all nodes
cluster      nodes and actors, and which of them are alive
worker       what runs in an actor, on a node; knows nothing of Ray
"""
