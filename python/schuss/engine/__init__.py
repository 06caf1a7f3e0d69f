"""What the rules stand on; no file here names a rule."""
