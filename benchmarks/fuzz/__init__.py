"""Mutants of every file that is read, and what reading them must and must not do."""
