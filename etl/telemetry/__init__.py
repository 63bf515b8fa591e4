"""Telling others how a run fares: metrics for Prometheus, and one message when it has ended."""
