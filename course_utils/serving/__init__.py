"""A page for the browser that registers two scans; an extra of its own, and only `serve` and a cell import it."""
