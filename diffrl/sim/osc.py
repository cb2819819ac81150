"""robosuite's OSC_POSE controller and Panda gripper, compiled, around MuJoCo's own step.

One control step (20 Hz) is 25 physics steps of 2 ms. In each, robosuite 1.4.0 calls `mj_forward`,
its controller in numpy, and `mj_step`, which repeats the forward pass. Here the controller runs
between `mj_step1` and `mj_step2`, once, without the GIL. The arithmetic is robosuite's
(`controllers/osc.py`, `utils/control_utils.py`): Khatib's operational space control with position
and orientation decoupled and a null space that pulls to the joints of the last reset.
"""

from pathlib import Path

import llvmlite.binding as llvm
import mujoco
import numpy as np

from diffrl.base.jit import njit, types

SUBSTEPS = 25  # physics steps in a control step: 50 ms / 2 ms
STIFFNESS = 150.0  # kp, 1/s²; critically damped
NULL_STIFFNESS = 10.0  # joint kp of the null space, 1/s²
MAX_TRANSLATION = 0.05  # m, goal offset of an action of 1
MAX_ROTATION = 0.5  # rad
MAX_SPEED = 1e3  # m/s or rad/s; LIBERO's fastest bodies stay below 1e2 (our choice)
GRIPPER_SPEED = 0.01  # change of the gripper's normalised target in a physics step

# numba caches compiled calls into MuJoCo only when they go by name
llvm.load_library_permanently(str(next(Path(mujoco.__file__).parent.glob("libmujoco*"))))
_void, _ptr = types.void, types.intp
_step1 = types.ExternalFunction("mj_step1", _void(_ptr, _ptr))
_step2 = types.ExternalFunction("mj_step2", _void(_ptr, _ptr))


@njit(nogil=True)
def _cholesky(a, n):
    """Factor the leading n×n block of the symmetric positive definite `a` in place (lower)."""
    for j in range(n):
        for k in range(j):
            a[j, j] -= a[j, k] * a[j, k]
        a[j, j] = np.sqrt(max(a[j, j], 1e-15))  # an outstretched arm is singular, not NaN
        for i in range(j + 1, n):
            for k in range(j):
                a[i, j] -= a[i, k] * a[j, k]
            a[i, j] /= a[j, j]


@njit(nogil=True)
def _solve(factor, b, n):
    """Overwrite `b` (n,) with A⁻¹ b, given A's Cholesky factor."""
    for i in range(n):
        for k in range(i):
            b[i] -= factor[i, k] * b[k]
        b[i] /= factor[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            b[i] -= factor[k, i] * b[k]
        b[i] /= factor[i, i]


@njit(nogil=True)
def _rotate(goal, rotation, current):
    """goal ← exp(rotation) · current, all 3×3 row-major (9,), rotation an axis-angle vector."""
    angle = np.sqrt(rotation[0] ** 2 + rotation[1] ** 2 + rotation[2] ** 2)
    x, y, z = rotation[0] / angle, rotation[1] / angle, rotation[2] / angle
    c, s = np.cos(angle), np.sin(angle)
    t = 1.0 - c
    r = np.array(
        [
            [t * x * x + c, t * x * y - s * z, t * x * z + s * y],
            [t * x * y + s * z, t * y * y + c, t * y * z - s * x],
            [t * x * z - s * y, t * y * z + s * x, t * z * z + c],
        ]
    )
    for i in range(3):
        for j in range(3):
            goal[3 * i + j] = 0.0
            for k in range(3):
                goal[3 * i + j] += r[i, k] * current[3 * k + j]


@njit(nogil=True)
def _orientation_error(error, desired, current):
    """error (3,) ← ½ Σ columns(current) × columns(desired); robosuite's orientation_error."""
    error[:] = 0.0
    for j in range(3):
        c0, c1, c2 = current[j], current[3 + j], current[6 + j]
        d0, d1, d2 = desired[j], desired[3 + j], desired[6 + j]
        error[0] += 0.5 * (c1 * d2 - c2 * d1)
        error[1] += 0.5 * (c2 * d0 - c0 * d2)
        error[2] += 0.5 * (c0 * d1 - c1 * d0)


@njit(nogil=True)
def _arm_torques(wrench, jacobian, mass, joints, velocity, home, bias, torque):
    """torque (7,) ← Jᵀ·[Λp F; Λr T] + gravity + null space, all of robosuite's run_controller.

    wrench (6,) desired force and torque per unit inertia; jacobian (6, 7); mass (7, 7).
    Every Λ·v is a Cholesky solve where robosuite forms a pseudo-inverse.
    """
    factor = mass.copy()
    _cholesky(factor, 7)
    weighted = jacobian.copy()  # rows of J M⁻¹ (M is symmetric)
    for r in range(6):
        _solve(factor, weighted[r], 7)
    inertia = np.empty((6, 6))  # J M⁻¹ Jᵀ = Λ⁻¹
    for i in range(6):
        for j in range(6):
            total = 0.0
            for k in range(7):
                total += weighted[i, k] * jacobian[j, k]
            inertia[i, j] = total
    force = wrench.copy()
    for start in (0, 3):  # position and orientation decoupled
        block = inertia[start : start + 3, start : start + 3].copy()
        _cholesky(block, 3)
        _solve(block, force[start : start + 3], 3)
    pose = np.zeros(7)  # M (kp (q_home - q) - kd q̇)
    damping = 2.0 * np.sqrt(NULL_STIFFNESS)
    for i in range(7):
        for j in range(7):
            pull = NULL_STIFFNESS * (home[j] - joints[j]) - damping * velocity[j]
            pose[i] += mass[i, j] * pull
    leak = np.zeros(6)  # Λ J M⁻¹ pose: the part of the null torques that would move the hand
    for i in range(6):
        for k in range(7):
            leak[i] += weighted[i, k] * pose[k]
    _cholesky(inertia, 6)
    _solve(inertia, leak, 6)
    for k in range(7):
        torque[k] = bias[k] + pose[k]
        for i in range(6):
            torque[k] += jacobian[i, k] * (force[i] - leak[i])


@njit(nogil=True)
def _jacobian(jacobian, motion, dofs, offset):
    """jacobian (6, 7) ← of a point of the hand, from MuJoCo's motion axes (its `mj_jac`).

    motion (nv, 6) cdof: rotation, then translation; offset (3,) from the tree's centre of mass.
    """
    for k in range(7):
        axis = motion[dofs[k]]
        for i in range(3):
            a, b = (i + 1) % 3, (i + 2) % 3
            jacobian[i, k] = axis[3 + i] + (axis[a] * offset[b] - axis[b] * offset[a])
            jacobian[3 + i, k] = axis[i]


@njit(nogil=True)
def control_step(
    model,  # address of MjModel
    data,  # address of MjData
    action,  # (7,) in [-1, 1]
    qpos,  # (nq,) view of MjData, as all that follow to `warnings`
    qvel,  # (nv,)
    ctrl,  # (nu,)
    bias,  # (nv,) qfrc_bias
    inertia,  # (nM,) qM
    motion,  # (nv, 6) cdof
    centre,  # (3,) subtree_com of the robot
    eef_pos,  # (3,) site_xpos of the grip site
    eef_mat,  # (9,) site_xmat
    warnings,  # (3,) numbers of bad positions, velocities and accelerations
    joints,  # (7,) addresses of the arm in qpos
    dofs,  # (7,) addresses of the arm in qvel
    masses,  # (7, 7) addresses of the arm's inertia in qM
    motors,  # (7,) arm actuators
    fingers,  # (2,) gripper actuators
    limits,  # (9, 2) control ranges of motors and fingers
    home,  # (7,) joints of the last reset, rad
    goal_mat,  # (9,) goal orientation, kept between calls
    grip,  # (2,) normalised finger targets, kept between calls
    substeps,  # physics steps in this control step; LIBERO's 25
    gripper_speed,  # change of `grip` in each of them
):
    """Advance one MjData by one control step; False if it diverged."""
    goal_pos, wrench, error, offset = np.empty(3), np.empty(6), np.empty(3), np.empty(3)
    jacobian, mass, torque = np.empty((6, 7)), np.empty((7, 7)), np.empty(7)
    q, v, b = np.empty(7), np.empty(7), np.empty(7)
    damping = 2.0 * np.sqrt(STIFFNESS)
    for substep in range(substeps):
        _step1(model, data)
        if substep == 0:
            for i in range(3):  # an expression of arrays takes longer to compile
                goal_pos[i] = eef_pos[i] + MAX_TRANSLATION * action[i]
            if action[3] != 0.0 or action[4] != 0.0 or action[5] != 0.0:
                # with a zero rotation robosuite keeps the previous goal orientation
                _rotate(goal_mat, MAX_ROTATION * action[3:6], eef_mat)
        for i in range(3):
            offset[i] = eef_pos[i] - centre[i]
        _jacobian(jacobian, motion, dofs, offset)
        _orientation_error(error, goal_mat, eef_mat)
        for i in range(7):
            q[i], v[i], b[i] = qpos[joints[i]], qvel[dofs[i]], bias[dofs[i]]
            for j in range(7):
                mass[i, j] = inertia[masses[i, j]]
        for i in range(6):
            speed = 0.0
            for k in range(7):
                speed += jacobian[i, k] * v[k]
            distance = goal_pos[i] - eef_pos[i] if i < 3 else error[i - 3]
            wrench[i] = STIFFNESS * distance - damping * speed
        _arm_torques(wrench, jacobian, mass, q, v, home, b, torque)
        for i in range(7):
            ctrl[motors[i]] = min(max(torque[i], limits[i, 0]), limits[i, 1])
        for i in range(2):
            direction = (2.0 * i - 1.0) * np.sign(action[6])
            grip[i] = min(max(grip[i] + gripper_speed * direction, -1.0), 1.0)
            low, high = limits[7 + i, 0], limits[7 + i, 1]
            ctrl[fingers[i]] = 0.5 * (low + high) + 0.5 * (high - low) * grip[i]
        _step2(model, data)
    # MuJoCo resets a bad state by itself and goes on; its warnings tell
    sound = warnings[0] == 0 and warnings[1] == 0 and warnings[2] == 0
    for i in range(len(qvel)):
        sound = sound and abs(qvel[i]) < MAX_SPEED
    return sound
