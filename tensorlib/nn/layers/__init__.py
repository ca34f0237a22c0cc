"""The layers, one file per family; `tensorlib.nn` lists them all.

A layer keeps its options and its parameters; what it computes is one call of a function of
`tensorlib.nn.functional`.
"""
