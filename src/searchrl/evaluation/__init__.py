"""Methods side by side on the same questions, with intervals."""
