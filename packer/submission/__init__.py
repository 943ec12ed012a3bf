"""Submission folders: read, accounted for, repaired."""
