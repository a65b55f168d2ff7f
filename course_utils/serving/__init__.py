"""A page for the browser that registers two scans; an extra of its own, and only the command `serve` imports it."""
