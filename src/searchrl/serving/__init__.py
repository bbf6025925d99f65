"""What this package offers to other programs over HTTP."""
