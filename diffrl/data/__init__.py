"""Episodes and what holds them: HDF5, LeRobot, human and scripted demonstrations, generation."""
