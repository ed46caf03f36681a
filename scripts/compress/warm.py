"""What every PyTorch model needs, imported before any of them is known: compress.forked forks processes from here."""

# ruff: noqa: E402, F401
import sys

from compress.measure.protocol import FOR_OTHER_TASKS

for library in FOR_OTHER_TASKS:
    sys.modules[library] = None

import torch
from compress.engines import predictor as predict
from compress.engines import pytorch as model
from compress.loadtest import generator as load
from transformers import AutoModelForSequenceClassification
from transformers.models.bert import modeling_bert

for library in FOR_OTHER_TASKS:  # whoever trains in a fork needs them
    del sys.modules[library]
