"""Where synthetic images come from: generators, and what labels them."""
