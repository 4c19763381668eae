"""Pure functions of images, as arrays on the device."""
