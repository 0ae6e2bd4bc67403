"""Measures one and the same update in every scenario named, with every estimator; rank by rank its own batch."""

import faulthandler
import sys
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from distributed import sharded
from distributed.launch import report
from torch import distributed as dist

from flerm_client.subject import find_ranks, make_subject
from flerm_core.measure.meter import Meter, make_estimator

warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
faulthandler.dump_traceback_later(50, exit=True)  # a hang says where
dist.init_process_group("gloo")
table = sharded.scenarios(dist.get_world_size())
results = {}
for name in [name for name in sys.argv[2:] if name != "-v"]:
    kind, options, shape, wrap = table[name]
    mesh = sharded.world(*(size for _, size in shape), names=tuple(axis for axis, _ in shape))
    model = sharded.build(kind, **options)
    steps = sharded.steps_of(model)
    model = wrap(model, mesh)
    moving = [p for p in model.parameters() if p.requires_grad]
    ranks = find_ranks(model, None)
    subject = make_subject(model, [torch.optim.SGD(moving, 1e-3)], None, None, ranks)
    update = sharded.take_step(dict(subject.parameters), steps)
    uneven = "uneven" in name
    for estimator in sys.argv[1].split(","):
        meter = Meter(subject, make_estimator(estimator, subject), ranks, seed=sharded.SEED)
        try:
            found = meter.measure(update, iter([sharded.batch_of(ranks.rank, uneven)]), 1)
        except Exception:
            found = traceback.format_exc()
            if "-v" in sys.argv:
                print(found)
        results[name, estimator] = found
report(results)
dist.destroy_process_group()
