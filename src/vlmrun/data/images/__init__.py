"""Images: opened safely, turned into tensors, cut into grids."""
