"""The words of the pipeline: statuses, the items that are at work, and what is shown of them."""
