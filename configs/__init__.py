"""The stages of the ladder. Each file imports the stage before it and changes a few lines."""
