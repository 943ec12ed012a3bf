"""Tables, plots and pages of the values that the commands compute."""
