"""The boards: which devices a machine has, and where. Each module builds one; none knows the machine around it."""
