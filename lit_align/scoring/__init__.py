"""How a policy scores a forest: layouts, the head, and references."""
