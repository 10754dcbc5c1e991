"""Why a model does not learn: what a run left behind, read by a table of rules. Free of torch."""
