"""A decision does not depend on its company."""

import torch

from diffrl.evaluation.policies import BLOCK
from diffrl.policy.decide import in_blocks


def test_blocks_make_a_row_independent_of_its_company_and_place():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(40, 96), torch.nn.GELU(), torch.nn.Linear(96, 56))
    rows = torch.randn(2 * BLOCK + 3, 40)
    with torch.no_grad():
        together = in_blocks(net, rows, block=BLOCK)
        alone = torch.cat([in_blocks(net, row[None], block=BLOCK) for row in rows])
        order = torch.randperm(len(rows))
        shuffled = in_blocks(net, rows[order], block=BLOCK)
    assert torch.equal(together, alone)
    assert torch.equal(together[order], shuffled)
