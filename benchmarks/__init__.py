"""What the package costs, compared with plain code that does the same: python -m benchmarks.cycle, benchmarks.evaluation."""
