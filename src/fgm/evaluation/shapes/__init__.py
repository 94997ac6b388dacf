"""ShapeEval: GenEval's question for renders of shapes, with an exact detector and without any weights."""
