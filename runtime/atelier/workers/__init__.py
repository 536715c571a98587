"""Worker processes: each owns a device and runs an engine; the front hands requests to them."""
