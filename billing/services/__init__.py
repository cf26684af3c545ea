"""The steps of the work, one file per step. Functions take (session, ..., now); none speaks Xendit."""
