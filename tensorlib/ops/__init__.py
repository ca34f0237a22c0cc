"""The operations, one file per family; `tensorlib.autograd.primitive` tells how one is declared."""
