"""The workshop: what `schuss` runs on the command line. Nothing outside imports it."""
