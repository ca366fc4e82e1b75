"""What runs on the nodes of a job."""
