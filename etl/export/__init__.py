"""Export: records joined with their captions, as lines, files or shards."""
