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
from scipy import sparse

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
    quadrics, areas = _quadrics(points, faces, border)
    limit = float(tolerance) ** 2
    return first[_collapse(points, vertex_of, faces, quadrics, areas, limit, budget)]


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


def _quadrics(
    points: np.ndarray,  # (W, 8)
    faces: np.ndarray,  # (F, 3) wedges
    border: np.ndarray,  # (F, 3) whether a side is open
) -> tuple[np.ndarray, np.ndarray]:
    """Return (W, 9, 9) the quadrics of all wedges and (W,) their areas.

    In NumPy, as compiling these products takes longer than any mesh.
    """
    p = points[faces[:, 0]]
    e1, e2 = points[faces[:, 1]] - p, points[faces[:, 2]] - p
    area = 0.5 * np.linalg.norm(np.cross(e1[:, :3], e2[:, :3]), axis=1)
    face, k = np.nonzero(border)
    ends = np.stack([faces[face, k], faces[face, (k + 1) % 3]], axis=1)  # (B, 2)
    side = points[ends[:, 1]] - points[ends[:, 0]]
    weight = BORDER * (side[:, :3] ** 2).sum(axis=1)
    distances = [
        _squared_distances(p, e1, e2, area),
        _squared_distances(points[ends[:, 0]], side, np.zeros_like(side), weight),
    ]
    columns = [np.repeat(np.arange(len(faces)), 3), len(faces) + np.repeat(np.arange(len(ends)), 2)]
    rows = np.concatenate([faces.ravel(), ends.ravel()])
    belongs = sparse.csr_array(
        (np.ones(len(rows)), (rows, np.concatenate(columns))),
        shape=(len(points), len(faces) + len(ends)),
    )
    quadrics = belongs @ np.concatenate(distances).reshape(-1, SIZE * SIZE)
    areas = np.bincount(faces.ravel(), np.repeat(area, 3), len(points))
    return quadrics.reshape(-1, SIZE, SIZE), areas


def _squared_distances(
    p: np.ndarray,  # (n, 8)
    e1: np.ndarray,  # (n, 8)
    e2: np.ndarray,  # (n, 8)
    weight: np.ndarray,  # (n,)
) -> np.ndarray:
    """Return (n, 9, 9) weight × the squared distances to p + span(e1, e2), homogeneous."""
    projector = np.tile(np.eye(p.shape[1]), (len(p), 1, 1))
    for e in (e1, e2):
        direction = np.einsum("nij,nj->ni", projector, e)
        square = (direction**2).sum(axis=1)
        scale = np.divide(1.0, square, out=np.zeros_like(square), where=square > 1e-18)
        projector -= np.einsum("n,ni,nj->nij", scale, direction, direction)
    offset = np.einsum("nij,nj->ni", projector, p)
    out = np.empty((len(p), SIZE, SIZE))
    out[:, :-1, :-1] = projector
    out[:, :-1, -1] = out[:, -1, :-1] = -offset
    out[:, -1, -1] = (p * offset).sum(axis=1)
    return out * weight[:, None, None]


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
def _collapse(points, vertex_of, faces, quadrics, areas, limit, budget):
    """Collapse edges, cheapest first; return (F', 3) wedges.

    It ends when the mean square error would exceed `limit` and at most `budget` triangles are left.

    Corner c = 3 f + k; the corners around a vertex form a linked list. A heap entry is out of date
    when the stamps of its two vertices have changed.
    """
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
    anchor = points[wedge[head[v]]]
    c = head[u]
    while c >= 0:
        f = c // 3
        a, b = wedge[3 * f + (c + 1) % 3], wedge[3 * f + (c + 2) % 3]
        if alive[f] and vertex_of[a] != v and vertex_of[b] != v:
            # cross products element by element: those of arrays take long to compile
            base, side, here = points[a], points[b], points[wedge[c]]
            before, after, both = 0.0, 0.0, 0.0
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                s, t = side[j] - base[j], side[k] - base[k]
                old = s * (here[k] - base[k]) - t * (here[j] - base[j])
                new = s * (anchor[k] - base[k]) - t * (anchor[j] - base[j])
                before += old**2
                after += new**2
                both += old * new
            if both <= FLIP * np.sqrt(before * after):
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
            for i in range(SIZE):
                for j in range(SIZE):
                    quadrics[to, i, j] += quadrics[w, i, j]
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
