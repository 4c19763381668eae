"""Small tools that know nothing of images or networks."""
