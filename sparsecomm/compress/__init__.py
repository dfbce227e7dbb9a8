"""From a rank's gradient to what it sends, and what it keeps."""
