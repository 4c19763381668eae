"""Drop-in replacements for operations that XLA compiles to slow code, mostly on CPUs."""
