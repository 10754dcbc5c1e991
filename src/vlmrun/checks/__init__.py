"""Rules a run must keep, all asked before a weight is loaded."""
