"""What ``commands`` has at hand in the process that it forks from: the libraries, and nothing that a command left."""

from __future__ import annotations

import gc

import torch

import adamergex.evaluation
import adamergex.report
import adamergex.tables.study
import adamergex.tables.transfer
import adamergex.training.train  # noqa: F401

torch.set_num_threads(1)
gc.collect()
gc.freeze()
