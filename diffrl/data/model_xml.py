"""The poses of bodies in a stored MuJoCo model, read without trusting its XML."""

from xml.parsers import expat

import numpy as np

from diffrl.base.errors import UserError


def body_poses(xml: str) -> dict[str, np.ndarray]:
    """Return the pose of every body that stands directly in the world, from a MuJoCo XML.

    Each is (7,): position [m], quaternion (w, x, y, z), in the parent's frame – the world's.
    Document types and entities are refused: data has no use for them, attacks do.

    Raises:
        UserError: it is no well-formed XML, or holds what is refused.
    """
    poses: dict[str, np.ndarray] = {}
    open_tags: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "body" and open_tags == ["mujoco", "worldbody"]:
            poses[attributes.get("name", "")] = _pose(attributes)
        open_tags.append(tag)

    def refuse(*_) -> None:
        raise UserError("a model_file declares a document type or entities; they are refused")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_tags.pop()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, ValueError) as error:
        raise UserError(f"a model_file cannot be read as MuJoCo XML: {error}") from error
    return poses


def _pose(attributes: dict[str, str]) -> np.ndarray:
    if other := {"euler", "axisangle", "xyaxes", "zaxis"} & attributes.keys():
        raise ValueError(f"body {attributes.get('name')!r} is turned by {other}, not by quat")
    text = attributes.get("pos", "0 0 0") + " " + attributes.get("quat", "1 0 0 0")
    pose = np.array([float(word) for word in text.split()])
    if pose.shape != (7,) or not np.isfinite(pose).all() or not pose[3:].any():
        raise ValueError(f"body {attributes.get('name')!r} has no pose of 3 + 4 finite numbers")
    pose[3:] /= np.linalg.norm(pose[3:])
    return pose
