"""What the commands show: tables, plots and pages of values made elsewhere."""
