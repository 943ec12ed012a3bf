"""Artifacts of other authors: read, re-encoded, made smaller."""
