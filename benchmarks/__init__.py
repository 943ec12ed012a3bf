"""Measurements of speed, memory and size; run from a checkout, never installed."""
