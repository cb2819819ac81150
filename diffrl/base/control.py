"""How LIBERO's robot is controlled: what every room means by an action and a control step."""

ACTION_SIZE = 7  # dx dy dz, axis-angle drx dry drz, gripper (-1 open, +1 close)
CONTROL_HZ = 20  # control steps a second
SETTLE_STEPS = 10  # control steps before an episode, OpenVLA-OFT's and openpi's number
