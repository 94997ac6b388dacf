"""Velocity networks and their wrappers. One protocol: velocity(x_t, t, condition) -> (batch, *dims)."""
