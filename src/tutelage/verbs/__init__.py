"""The verbs: what the command line and the library share, one file each."""
