"""What is remembered: tables, queries, the clock. PostgreSQL is the only dialect."""
