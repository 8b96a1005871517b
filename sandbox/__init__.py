"""Stand-ins for parts that cannot be had on a machine cut off from their usual source."""
