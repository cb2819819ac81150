"""LIBERO's goal predicates, evaluated on MjData without LIBERO.

A goal is a conjunction of terms. `describe_goal` (called once, when a scene is compiled) reads the
terms off LIBERO's own objects; `Goal` evaluates them. Every rule below repeats LIBERO's arithmetic
(`libero.envs.object_states`, `libero.envs.objects.site_object`), quirks included: `In` tests a
point against a box that ignores half of the region's rotation, `On` an object asks that the
supporting object's origin is not above the other's.
"""

from typing import Any

import numpy as np

# ---- what is stored with a scene -------------------------------------------------------------


def describe_goal(env) -> list[dict]:
    """Goal terms of a LIBERO environment as plain data (JSON), one dict per predicate.

    Raises NotImplementedError naming a predicate that LIBERO's 130 tasks and LIBERO-PRO lack.
    """
    return [_describe(env, *state) for state in env.parsed_problem["goal_state"]]


def _describe(env, predicate: str, *names: str) -> dict:
    term: dict[str, Any] = {"predicate": predicate, "names": list(names)}
    subject = env.object_states_dict[names[0]]
    if predicate in ("open", "close", "turnon", "turnoff"):
        return term | _describe_joint(env, predicate, subject)
    target = env.object_states_dict[names[1]] if len(names) == 2 else None
    if predicate in ("in", "on") and target is not None:
        term["body"] = env.objects_dict[names[0]].root_body
        if target.object_state_type == "site":
            region = env.object_sites_dict[names[1]]
            term |= {"site": region.name, "size": [float(x) for x in region.size]}
            parent = env.get_object(target.parent_name)
            touching = predicate == "on" and parent is not None
            return term | (_contact(parent, env.get_object(names[0])) if touching else {})
        if predicate == "on":
            support = env.get_object(names[1])
            contact = _contact(support, env.get_object(names[0]))
            return term | {"support": support.root_body} | contact
    raise NotImplementedError(f"goal predicate {predicate} {names}")


def _contact(a, b) -> dict:
    return {"contact": [list(a.contact_geoms), list(b.contact_geoms)]}


def _describe_joint(env, predicate: str, state) -> dict:
    """Joints, threshold and direction of Open/Close/TurnOn/TurnOff, probed from LIBERO's rule."""
    site = state.object_state_type == "site"
    owner = env.get_object(state.parent_name if site else state.object_name)
    joints = env.object_sites_dict[state.object_name].joints if site else owner.joints
    rule = {
        "open": ("is_open", "default_open_ranges"),
        "close": ("is_close", "default_close_ranges"),
        "turnon": ("turn_on", "default_turnon_ranges"),
        "turnoff": ("turn_off", "default_turnoff_ranges"),
    }[predicate]
    holds = getattr(owner, rule[0])
    for threshold in owner.object_properties["articulation"][rule[1]]:
        below, above = (
            holds(np.nextafter(threshold, -np.inf)),
            holds(np.nextafter(threshold, np.inf)),
        )
        if below != above:
            sign = 1.0 if above else -1.0
            every = predicate in ("close", "turnoff")
            return {
                "joints": list(joints),
                "threshold": float(threshold),
                "sign": sign,
                "inclusive": bool(holds(threshold)),
                "every": every,
            }
    raise NotImplementedError(f"{predicate} {state.object_name}: the rule has no threshold")


# ---- evaluation ------------------------------------------------------------------------------


class Goal:
    """A scene's goal on one model: `goal(data)` is LIBERO's `_check_success()`.

    Positions and contacts are those MjData holds, computed before the last integration, which is
    what LIBERO sees after `env.step`.
    """

    def __init__(self, model, terms: list[dict]):
        self._checks = [_compile(model, term) for term in terms]

    def __call__(self, data) -> bool:
        """True when every predicate holds on this MjData."""
        return all(check(data) for check in self._checks)


def _compile(model, term: dict):
    if "joints" in term:
        return _joint_check(model, term)
    geometry = _region_check(model, term) if "site" in term else _support_check(model, term)
    if "contact" not in term:
        return geometry
    touches = _contact_check(model, *term["contact"])
    return lambda data: geometry(data) and touches(data)


def _joint_check(model, term: dict):
    address = [int(model.joint(name).qposadr[0]) for name in term["joints"]]
    sign, threshold, inclusive = term["sign"], term["threshold"], term["inclusive"]
    quantifier = all if term["every"] else any

    def check(data) -> bool:
        margins = (sign * (float(data.qpos[i]) - threshold) for i in address)
        return quantifier(m > 0 or (inclusive and m == 0) for m in margins)

    return check


def _region_check(model, term: dict):
    site, body = model.site(term["site"]).id, model.body(term["body"]).id
    size = np.array(term["size"])
    reach = float(np.linalg.norm(size)) + 0.11  # beyond it neither rule holds, however it turns

    def far(data) -> bool:
        place, x = data.site_xpos[site], data.xpos[body]
        return any(abs(x.item(i) - place.item(i)) > reach for i in range(3))

    def contains(data) -> bool:
        if far(data):  # nearly always, at a tenth of the cost
            return False
        extent = np.abs(data.site_xmat[site].reshape(3, 3) @ size)
        lower, upper = data.site_xpos[site] - extent, data.site_xpos[site] + extent
        lower[2] -= 0.01
        x = data.xpos[body]
        return bool((x > lower).all() and (x < upper).all())

    def above(data) -> bool:
        if far(data):
            return False
        delta = data.site_xmat[site].reshape(3, 3) @ (data.xpos[body] - data.site_xpos[site])
        return bool(
            size[2] - 0.005 < delta[2] < size[2] + 0.10 and (np.abs(delta[:2]) < size[:2]).all()
        )

    return contains if term["predicate"] == "in" else above


def _support_check(model, term: dict):
    body, support = model.body(term["body"]).id, model.body(term["support"]).id

    def stacked(data) -> bool:
        offset = data.xpos[support] - data.xpos[body]
        return bool(offset[2] <= 0 and np.linalg.norm(offset[:2]) < 0.03)

    return stacked


def _contact_check(model, first: list[str], second: list[str]):
    group = np.zeros((2, model.ngeom), bool)
    for row, names in enumerate((first, second)):
        group[row, [model.geom(name).id for name in names]] = True

    def touches(data) -> bool:
        pairs = data.contact.geom  # (ncon, 2)
        a, b = group[:, pairs]
        return bool(((a[:, 0] & b[:, 1]) | (b[:, 0] & a[:, 1])).any())

    return touches
