"""From files to batches. Only what handles tensors loads torch; formats and templates do not."""
