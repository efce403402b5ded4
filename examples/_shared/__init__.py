"""What the example programs share: arguments, data files, training of one or both sides, checkpoints, curves.

A program subclasses `Learner` (the model, the batches, the loss, the evaluation) and hands the class to `run`. With
`--impl both` the layers of torch.nn and of fastrnn start from the same weights and see the same batches, so they must
learn the same thing: `run` trains them in turns, epoch by epoch, and prints and draws the curves side by side.
"""

from . import packages  # isort: skip  it comes first and says which package is missing, if one is
from .arguments import LIBRARIES, UsageError, make_parser, packaged_file, real, whole
from .learner import Learner
from .run import run

__all__ = ["LIBRARIES", "Learner", "UsageError", "make_parser", "packaged_file", "packages", "real", "run", "whole"]
