"""Pre-training and distillation as LightningModules, and what happens around them."""
