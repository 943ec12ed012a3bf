"""Reads submission folders: code, artifacts, claims, logs, and the account of every run."""
