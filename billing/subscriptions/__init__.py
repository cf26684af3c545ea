"""The life of a subscription: its moves from state to state, its calendar, its invoices, the periods that are opened."""
