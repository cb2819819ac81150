"""The simulator room: LIBERO's tasks, scenes, start states and physics."""

from diffrl.base.opengl import import_mujoco

mujoco = import_mujoco()  # before any module of this room imports it
