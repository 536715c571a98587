"""What the routes of every protocol share."""
