"""Make packed sets: from folders of image files, and from the simulator."""
