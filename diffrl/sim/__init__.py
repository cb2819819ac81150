"""The simulator room: LIBERO's tasks, scenes, start states and physics."""
