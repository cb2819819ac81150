"""A goal's rules, written out plainly."""

from types import SimpleNamespace

import numpy as np
import pytest

from diffrl.sim.goals import Goal

SIZE = np.array([0.08, 0.05, 0.03])


def rotation(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def contains(matrix, site, x):
    extent = np.abs(matrix @ SIZE)
    lower, upper = site - extent - [0, 0, 0.01], site + extent
    return bool((x > lower).all() and (x < upper).all())


def above(matrix, site, x):
    a, b, c = matrix @ (x - site)
    return bool(SIZE[2] - 0.005 < c < SIZE[2] + 0.10 and abs(a) < SIZE[0] and abs(b) < SIZE[1])


@pytest.mark.parametrize(("predicate", "rule"), [("in", contains), ("on", above)])
def test_a_region_holds_what_its_rule_says_near_and_far(predicate, rule):
    rng = np.random.default_rng(0)
    named = SimpleNamespace(id=0)
    model = SimpleNamespace(site=lambda name: named, body=lambda name: named)
    term = {"predicate": predicate, "site": "region", "body": "soup", "size": SIZE.tolist()}
    goal, held = Goal(model, [term]), 0
    for reach in np.linspace(0.02, 0.4, 2000):
        matrix, site = rotation(rng), rng.normal(size=3)
        x = site + rng.uniform(-reach, reach, 3)
        data = SimpleNamespace(site_xmat=matrix.reshape(1, 9), site_xpos=site[None], xpos=x[None])
        assert goal(data) == rule(matrix, site, x)
        held += goal(data)
    assert 100 < held < 1900
