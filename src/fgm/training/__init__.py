"""LightningModules, callbacks, checkpoints and strategies."""
