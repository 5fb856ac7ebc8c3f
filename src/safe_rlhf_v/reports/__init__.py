"""Self-contained HTML reports: one file per kind of report over a few building blocks, without scripts or requests."""
