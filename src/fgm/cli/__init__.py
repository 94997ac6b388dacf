"""Every command; Hydra is used only here."""
