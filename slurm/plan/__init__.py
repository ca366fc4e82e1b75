"""What is asked for, checked and worked out: a plan, which every command starts from."""
