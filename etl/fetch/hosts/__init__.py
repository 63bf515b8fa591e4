"""How one host fares, and when it may be asked."""
