"""Reports for people: facts from the services as Markdown, SVG charts and HTML pages."""
