"""A probe head of your own: the class whose mean feature points in the most similar direction.

vjepa probe own encoder=ENCODER train=SHARDS test=SHARDS plugins=[examples/own_head.py] heads.names=[linear,direction]
"""

import torch
from torch.nn.functional import normalize

from probes.features import Features
from probes.fit import Fitted
from probes.kinds import FitContext, head


@head("direction")
def fit_direction(train: Features, test: Features, context: FitContext) -> Fitted:
    """pooled [B, views, D]; returns the probability of every class for every test sample [B, classes]."""
    centre = train.pooled.mean((0, 1))
    known, asked = train.pooled.mean(1) - centre, test.pooled.mean(1) - centre
    means = torch.stack([known[train.labels == label].mean(0) for label in range(context.classes)])
    return Fitted(torch.softmax(10 * normalize(asked, dim=1) @ normalize(means, dim=1).T, 1), {})
