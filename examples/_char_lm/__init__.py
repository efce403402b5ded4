"""The parts of the character language model: data, model, training, checkpoints, options and the report."""

import importlib.util
import sys

for _package in ("fastrnn", "matplotlib", "tqdm"):  # now, not when the figure is due after minutes of training
    if importlib.util.find_spec(_package) is None:
        sys.exit(
            f"char_lm.py: expected the package {_package} to be installed, found none: go to the folder of fastrnn's "
            "setup.py and type: python -m pip install --no-build-isolation '.[examples]'"
        )
