"""Prompts: where they come from, what benchmarks ask, what encoders make of them, and a cache that training reads."""
