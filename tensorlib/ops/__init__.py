"""The operations, one file per family; see `tensorlib.autograd.primitive` for how one is declared."""
