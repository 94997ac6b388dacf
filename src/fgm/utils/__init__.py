"""Keyed random streams, atomic files, records, errors and validation."""
