"""Which upstream a request goes to: pure decisions, with clock and chance as arguments."""
