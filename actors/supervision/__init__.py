"""Ray actors that look after other actors."""
