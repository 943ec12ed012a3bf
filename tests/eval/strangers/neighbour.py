"""A file beside the script, imported by its bare name."""

WIDTH = 16
