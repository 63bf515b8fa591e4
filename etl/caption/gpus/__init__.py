"""Which GPUs there are, and a process for each of them."""
