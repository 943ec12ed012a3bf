"""Weights moved before they are rounded, to make good the errors of those rounded first."""
