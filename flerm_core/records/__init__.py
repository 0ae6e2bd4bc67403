"""What is stored and asked: recordings, measurements, queries, and the rules that they must keep."""
