"""How subscribers come in: plans and customers (catalog), payment sessions and what becomes of them, imports."""
