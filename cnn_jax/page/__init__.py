"""The parts of the web page (cnn_jax/app.py)."""
