"""Who says what a response is worth, and the rows that hold it."""
