"""Who scores a response: the judge, and the rows that hold what it says."""
