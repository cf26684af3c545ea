"""What people and scripts are shown: single views, lists in pages, one subscription's timeline and what comes next."""
