"""Flow Generator Matching (arXiv 2410.19310): distil a flow-matching model into a one-step generator.

Read in this order: paths, losses, analytic, networks/generator, training/turns, train.
"""

__version__ = "0.1.0"
