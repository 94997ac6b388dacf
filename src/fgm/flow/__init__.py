"""The mathematics: paths, timestep densities, losses, solvers and exact solutions. Needs torch only."""
