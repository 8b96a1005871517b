"""What things cost, measured on hosts of its own; each module says what it measures and prints a table."""
