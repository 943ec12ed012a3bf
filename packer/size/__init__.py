"""Bytes of a model before it is trained."""
