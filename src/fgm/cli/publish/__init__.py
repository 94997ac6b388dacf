"""A finished run in a form that others load without fgm: a diffusers pipeline with a model card."""
