"""`sparsecomm train`."""
