"""Made-up clients for benchmarks/clients.py: one that agrees, and those of which something else becomes."""

from __future__ import annotations

import os

import torch
from client_models import Client
from torch import nn


def gru(fault=lambda output: output, layer=None, **options) -> Client:
    """A client with a layer whose output a fault changes on fastrnn."""

    def build():
        rnn, x = (layer or nn.GRU)(3, 5), torch.randn(4, 2, 3)

        def call():
            output, h = rnn(x)
            output = fault(output) if type(rnn).__module__.startswith("fastrnn") else output
            return output.square().mean(), output, h

        return rnn, call

    return Client("torch", "BSD-3-Clause", "GRU", build, **options)


CLIENTS = {
    "same": gru(),
    "differs": gru(lambda output: output * 1.0001),
    "dies": gru(lambda output: os._exit(7)),
    "gone": gru(bare=("fastrnn-no-such-package",)),
}
