"""Teachers: one file for each kind."""
