"""Parts of a state: dealt out, and brought back."""
