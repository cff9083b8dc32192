"""The referee: anykmeans and its peers, side by side. `python -m benchmarks --help`."""
