"""What one tracked event costs, measured beside its floor and its peers: `python -m benchmarks`."""
