"""Measures one and the same update on every rank, each on its own probe batch, in float64."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from distributed.launch import report
from measure import models
from measure.reference import random_update
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flerm_client.subject import find_ranks, make_subject
from flerm_core.measure.meter import Meter, make_estimator

estimator, draws = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo")
case = models.build("embedding")
model = DistributedDataParallel(case.model)
optimizer = torch.optim.SGD(model.parameters(), 1e-3)
update, _ = random_update(case.model)
ranks = find_ranks(model, None)
subject = make_subject(model, [optimizer], None, None, ranks)
meter = Meter(subject, make_estimator(estimator, subject), ranks, seed=4)
batches = (case.batch(dist.get_rank()) for _ in iter(int, 1))
report([meter.measure(update, batches, 1) for _ in range(draws)])
dist.destroy_process_group()
