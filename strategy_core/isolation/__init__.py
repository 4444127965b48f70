"""Run the code of versions in sandboxed worker processes, and vet it at registration."""
