"""From recorded runs to tables and plots."""
