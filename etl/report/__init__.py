"""One HTML page about a state, for people who would rather look than read; it opens without a network."""
