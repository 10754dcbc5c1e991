"""What people look at: pages, curves, tables."""
