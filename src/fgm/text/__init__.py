"""Prompts and what text encoders make of them: sources, the encoders, and a cache that training reads."""
