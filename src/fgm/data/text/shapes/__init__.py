"""ShapeEval's captions: their words, their grammar, and GenEval's form of them."""
