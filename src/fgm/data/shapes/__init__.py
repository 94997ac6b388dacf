"""ShapeEval's world: captioned renders of coloured shapes, unlimited and drawn on the fly."""
