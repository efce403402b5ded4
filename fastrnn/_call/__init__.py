"""A call of a stack of layers: its checks, autocast, chunks of time, one layer after another."""
