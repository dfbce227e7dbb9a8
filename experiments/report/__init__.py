"""From results to figures, tables and a page."""
