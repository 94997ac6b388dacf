"""diffusers' flow transformers as velocities: one adapter (adapter.py), and one specification a family (families.py)."""
