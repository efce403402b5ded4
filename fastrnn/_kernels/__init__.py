"""The compiled extension: its operations, and which tensors they may be given."""
