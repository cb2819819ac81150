"""Fewer triangles for the same picture: edge collapse with generalised quadrics.

Garland and Heckbert, "Simplifying surfaces with color and texture using quadric error metrics"
(1998): a corner of a mesh is a point in 8-D – position, normal, texture coordinate –, a triangle
is a plane in that space, and the cheapest collapse is the one that leaves the planes of the
triangles around it least. A vertex only ever moves onto a neighbour (our choice), so the corners
that remain are corners of the original mesh, with their own normals and texture coordinates.
meshoptimizer, the usual tool, has no wheels: every user would need a C++ compiler.
"""

import heapq

import numpy as np

from diffrl.base.jit import njit

NORMAL = 5.0  # a normal that is off by 1 (57°) is worth so many tolerances; our choice
TEXTURE = 0.5  # metres of error for a metre by which the texture slides; our choice
FLIP = 0.2  # cosine of the largest turn of a triangle in one collapse; our choice
BORDER = 4.0  # weight of an open border's edge against its length squared; our choice
SIZE = 9  # homogeneous coordinates of the 8-D space


def simplify(
    positions: np.ndarray,  # (F, 3, 3) m: triangle, corner, xyz
    normals: np.ndarray,  # (F, 3, 3) unit vectors
    texture: np.ndarray,  # (F, 3, 2) texture coordinates, zeros without a texture
    tolerance: float,  # m, root-mean-square error that a collapse may make
    budget: int,  # triangles; a mesh with more of them is simplified beyond the tolerance
) -> np.ndarray:
    """Return (F', 3) indices into the F × 3 corners: the triangles of the simplified mesh."""
    corners = positions.reshape(-1, 3).astype(float)
    _, vertex = np.unique(corners, axis=0, return_inverse=True)
    slide = TEXTURE * _metres_per_texture_unit(positions, texture)
    space = np.hstack(
        [corners, NORMAL * tolerance * normals.reshape(-1, 3), slide * texture.reshape(-1, 2)]
    )
    points, first, wedge = np.unique(space, axis=0, return_index=True, return_inverse=True)
    vertex_of = vertex.reshape(-1)[first]
    faces = wedge.reshape(-1, 3)
    ends = vertex_of[faces]
    proper = (ends[:, 0] != ends[:, 1]) & (ends[:, 1] != ends[:, 2]) & (ends[:, 2] != ends[:, 0])
    faces = faces[proper]
    border = _open_borders(vertex_of[faces])
    return first[_collapse(points, vertex_of, faces, border, float(tolerance) ** 2, budget)]


def _metres_per_texture_unit(positions: np.ndarray, texture: np.ndarray) -> float:
    a, b = positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0]
    s, t = texture[:, 1] - texture[:, 0], texture[:, 2] - texture[:, 0]
    surface = np.linalg.norm(np.cross(a, b), axis=1).sum()
    image = np.abs(s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()
    return float(np.sqrt(surface / image)) if image > 0 else 0.0


def _open_borders(ends: np.ndarray) -> np.ndarray:
    """Return (F, 3): whether side k, from corner k to k + 1, belongs to this triangle alone."""
    sides = np.sort(np.stack([ends, np.roll(ends, -1, axis=1)], axis=-1), axis=-1)  # (F, 3, 2)
    _, index, count = np.unique(
        sides.reshape(-1, 2), axis=0, return_inverse=True, return_counts=True
    )
    return (count[index.reshape(-1)] == 1).reshape(-1, 3)


@njit()
def _quadrics(points, faces, border):
    """Return (W, 9, 9) the quadrics of all wedges and (W,) their areas."""
    quadrics = np.zeros((len(points), SIZE, SIZE))
    areas = np.zeros(len(points))
    none = np.zeros(points.shape[1])
    for f in range(len(faces)):
        p = points[faces[f, 0]]
        e1 = points[faces[f, 1]] - p
        e2 = points[faces[f, 2]] - p
        area = 0.5 * np.sqrt((np.cross(e1[:3], e2[:3]) ** 2).sum())
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            _add_distance(p, e1, e2, area, quadrics[a])
            areas[a] += area
            if border[f, k]:
                side = points[b] - points[a]
                weight = BORDER * (side[:3] ** 2).sum()
                _add_distance(points[a], side, none, weight, quadrics[a])
                _add_distance(points[a], side, none, weight, quadrics[b])
    return quadrics, areas


@njit()
def _add_distance(p, e1, e2, weight, out):
    """Add weight × the squared distance to p + span(e1, e2), in homogeneous coordinates."""
    n = p.size
    projector = np.eye(n)
    for e in (e1, e2):
        direction = projector @ e
        square = (direction**2).sum()
        if square > 1e-18:
            projector -= np.outer(direction, direction) / square
    offset = projector @ p
    out[:n, :n] += weight * projector
    out[:n, n] -= weight * offset
    out[n, :n] -= weight * offset
    out[n, n] += weight * (p @ offset)


@njit()
def _error(quadric, p):
    n = p.size
    total = quadric[n, n]
    for i in range(n):
        row = 2.0 * quadric[i, n]
        for j in range(n):
            row += quadric[i, j] * p[j]
        total += row * p[i]
    return max(total, 0.0)


@njit(nogil=True)
def _collapse(points, vertex_of, faces, border, limit, budget):
    """Collapse edges, cheapest first; return (F', 3) wedges.

    It ends when the mean square error would exceed `limit` and at most `budget` triangles are left.

    Corner c = 3 f + k; the corners around a vertex form a linked list. A heap entry is out of date
    when the stamps of its two vertices have changed.
    """
    quadrics, areas = _quadrics(points, faces, border)
    wedge = faces.copy().reshape(-1)
    alive = np.ones(len(faces), np.bool_)
    vertices = vertex_of.max() + 1
    head = np.full(vertices, -1)
    following = np.full(len(wedge), -1)
    for c in range(len(wedge)):
        v = vertex_of[wedge[c]]
        following[c], head[v] = head[v], c
    stamp = np.zeros(vertices, np.int64)
    offered = np.full(vertices, -1)
    target = np.full(len(points), -1)
    left = len(faces)
    mesh = (points, vertex_of, wedge, alive, head, following)
    heap = [(0.0, 0, 0, -1)]
    for v in range(vertices):
        _push(heap, v, True, mesh, quadrics, areas, target, stamp, offered)
    while len(heap) > 0:
        error, u, v, then = heapq.heappop(heap)
        if error > limit and left <= budget:
            break
        if then != stamp[u] + stamp[v] or head[u] < 0 or head[v] < 0:
            continue
        if _flips(u, v, mesh):
            continue
        _cost(u, v, mesh, quadrics, areas, target)  # where each wedge of u goes
        left -= _merge(u, v, mesh, quadrics, areas, target)
        stamp[u] += 1
        stamp[v] += 1
        _push(heap, v, False, mesh, quadrics, areas, target, stamp, offered)
    return wedge.reshape(-1, 3)[alive]


@njit()
def _cost(u, v, mesh, quadrics, areas, target):
    """Return the mean square error of moving u onto v; fill `target` for the wedges of u.

    Each wedge of u becomes the wedge of v that its own planes fit best: across a seam of the
    texture or a crease this choice costs what it spoils.
    """
    points, _, wedge, alive, head, following = mesh
    c = head[u]
    while c >= 0:
        target[wedge[c]] = -1
        c = following[c]
    total, area = 0.0, 1e-18
    c = head[u]
    while c >= 0:
        w = wedge[c]
        if alive[c // 3] and target[w] < 0:
            best, least = -1, np.inf
            other = head[v]
            while other >= 0:
                if alive[other // 3]:
                    error = _error(quadrics[w], points[wedge[other]])
                    if error < least:
                        best, least = wedge[other], error
                other = following[other]
            target[w] = best
            total += least
            area += areas[w]
        c = following[c]
    return total / area


@njit()
def _flips(u, v, mesh):
    """Whether moving u onto v turns a triangle over."""
    points, vertex_of, wedge, alive, head, following = mesh
    anchor = points[wedge[head[v]], :3]
    c = head[u]
    while c >= 0:
        f, k = c // 3, c % 3
        a, b = wedge[3 * f + (k + 1) % 3], wedge[3 * f + (k + 2) % 3]
        if alive[f] and vertex_of[a] != v and vertex_of[b] != v:
            side = points[b, :3] - points[a, :3]
            before = np.cross(side, points[wedge[c], :3] - points[a, :3])
            after = np.cross(side, anchor - points[a, :3])
            size = np.sqrt((before**2).sum() * (after**2).sum())
            if (before * after).sum() <= FLIP * size:
                return True
        c = following[c]
    return False


@njit()
def _merge(u, v, mesh, quadrics, areas, target):
    """Move u onto v; return how many triangles vanish: those that have both.

    The other corners of u, and its quadrics, go to v.
    """
    gone = 0
    _, vertex_of, wedge, alive, head, following = mesh
    c = head[u]
    while c >= 0:
        after, f, w = following[c], c // 3, wedge[c]
        to = target[w]
        if areas[w] > 0 and to >= 0:
            quadrics[to] += quadrics[w]
            areas[to] += areas[w]
            areas[w] = 0.0  # each wedge once
        if alive[f]:
            if (
                vertex_of[wedge[3 * f + (c + 1) % 3]] == v
                or vertex_of[wedge[3 * f + (c + 2) % 3]] == v
            ):
                alive[f] = False
                gone += 1
            else:
                wedge[c] = to
                following[c], head[v] = head[v], c
        c = after
    head[u] = -1
    return gone


@njit()
def _push(heap, v, first, mesh, quadrics, areas, target, stamp, offered):
    """Offer the collapses between v and its neighbours, each in the better direction."""
    _, vertex_of, wedge, alive, head, following = mesh
    offered[v] = v
    for fresh in (True, False):  # forget earlier offers, then make new ones
        c = head[v]
        while c >= 0:
            for k in range(1, 3):
                n = vertex_of[wedge[3 * (c // 3) + (c + k) % 3]]
                if fresh:
                    offered[n] = -1
                elif alive[c // 3] and offered[n] != v and (n > v or not first):
                    offered[n] = v
                    there = _cost(v, n, mesh, quadrics, areas, target)
                    back = _cost(n, v, mesh, quadrics, areas, target)
                    then = stamp[v] + stamp[n]
                    entry = (there, v, n, then) if there <= back else (back, n, v, then)
                    heapq.heappush(heap, entry)
            c = following[c]
