"""What `sparsecomm train` trains."""
