"""Data sets of the successes of experts, clones and the demonstrator."""
