"""Pure functions of batches of images on the device."""
