"""ShapeEval's world: captions of coloured shapes and their renders, unlimited and drawn on the fly."""
