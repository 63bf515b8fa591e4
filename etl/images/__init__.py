"""Any archive file to an RGB working copy in the content-addressed cache, decoded in confined processes."""
