"""What is predicted, one file each: hidden tokens, hidden and visible ones, or nothing: views must agree."""
