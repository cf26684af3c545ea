"""What Xendit sends: received and stored, then applied."""
