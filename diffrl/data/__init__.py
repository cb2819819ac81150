"""Episodes in files: HDF5, LeRobot's format, human demonstrations, films, exports."""
