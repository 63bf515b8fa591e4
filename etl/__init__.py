"""caption-etl: a resumable, checkpointed pipeline from a manifest of image URLs to captions."""

__version__ = "0.1.0"
