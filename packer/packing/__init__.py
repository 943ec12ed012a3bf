"""A plan to an artifact, its verification, and the comparison of plans with recipes."""
