"""Second moments of a model's weights: measured on text, kept in a file, given to a plan."""
