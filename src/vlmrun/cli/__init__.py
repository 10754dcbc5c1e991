"""The command line: one module per verb; `app` holds their table."""
