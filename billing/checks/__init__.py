"""Whether everything is right: invariants, the doctor that tells and repairs, reconciliation with Xendit."""
