"""Reports as people read them: facts that services have read, as Markdown, pictures and one HTML page."""
