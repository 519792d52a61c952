"""What makes a step fast or small, each optional, each with its slow form beside it."""
