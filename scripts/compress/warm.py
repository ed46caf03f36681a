"""What every PyTorch model needs, imported before any of them is known: compress.forked forks processes from here."""

# ruff: noqa: E402, F401
import sys

NOT_YET = ("sklearn", "scipy")  # as compress.measure does; whoever trains in a fork needs them
for library in NOT_YET:
    sys.modules[library] = None

import torch
from compress import load, measure, model, predict
from transformers import AutoModelForSequenceClassification
from transformers.models.bert import modeling_bert

for library in NOT_YET:
    del sys.modules[library]
