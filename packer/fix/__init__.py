"""An oversized artifact or submission folder to one under the cap."""
