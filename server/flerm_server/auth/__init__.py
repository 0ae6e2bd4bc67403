"""Who may do what: tokens, the rules of their scopes, and the guard that holds a store to them."""
