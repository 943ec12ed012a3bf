"""Commands killed at random points, and what must then be true of their files."""
