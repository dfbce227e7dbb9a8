"""One file a problem family: its loop over examples."""
