"""What the framework costs, measured on real processes and real brokers: `python -m benchmarks`."""
