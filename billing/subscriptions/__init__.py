"""The life of a subscription: its moves, its calendar, its invoices, the periods that are opened."""
