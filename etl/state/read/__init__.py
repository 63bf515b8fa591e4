"""Every question to the database, for those who only look."""
