"""What a checkpoint holds, read from its headers: nothing is loaded."""
