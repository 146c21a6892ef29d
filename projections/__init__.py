"""The followers: read models folded from the logs, each kept together with its checkpoint."""
