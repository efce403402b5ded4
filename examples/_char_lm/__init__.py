"""The parts of the character language model: data, model, training, checkpoints, options and the report."""

import _shared  # noqa: F401  it says which package is missing, if one is
