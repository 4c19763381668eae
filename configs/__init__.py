"""The stages of the ladder: each file is the stage before it and the lines that change."""
