"""What GenEval (Ghosh et al., arXiv 2310.11513) asks: its words, its metadata, and a grammar of our own in its form."""
