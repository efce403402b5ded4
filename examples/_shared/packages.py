"""Importing this module ends the program where a package that all examples need is missing."""

import importlib.util
import sys
from pathlib import Path

for _package in ("fastrnn", "numpy", "matplotlib", "tqdm"):  # now, not when the figure is due after minutes of training
    if importlib.util.find_spec(_package) is None:
        sys.exit(
            f"{Path(sys.argv[0]).name}: expected the package {_package} to be installed, found none: go to the folder "
            "of fastrnn's setup.py and type: python -m pip install --no-build-isolation '.[examples]'"
        )
