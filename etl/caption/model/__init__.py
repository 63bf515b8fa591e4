"""The model: found, vetted, loaded, and the device that it is on."""
