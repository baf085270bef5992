"""Where models come from: folders, the hub, Python packages."""
