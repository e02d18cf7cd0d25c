"""One file a claim; `make bench` runs them and writes `results/*.json`."""
