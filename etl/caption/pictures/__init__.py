"""From a working copy to the model's pixels, in processes of their own."""
