"""What is found of a config; loads nothing, for the command line."""

EXACT = "exact"
REFUSED = "refused"
WRONG = "wrong"
UNBUILDABLE = "unbuildable"
FAILED = "failed"
RESULTS = (EXACT, REFUSED, UNBUILDABLE, WRONG, FAILED)
# Not measured yet.
PENDING = "pending"
