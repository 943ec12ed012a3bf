"""Weights to a plan under a cap: measure, fit, plan, refine."""
