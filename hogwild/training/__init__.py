"""What every run needs, whatever its problem family or backend."""
