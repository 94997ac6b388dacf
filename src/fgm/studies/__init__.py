"""Sweeps and what is made of them: points, rows, tables, plots, pages and dashboards."""
