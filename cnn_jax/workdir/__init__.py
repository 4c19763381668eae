"""The files of a run: checkpoints, records, provenance; and its progress report."""
