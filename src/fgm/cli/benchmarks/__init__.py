"""What the suite costs, measured against the plainest code that does the same work, in one run."""
