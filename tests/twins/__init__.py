"""Every compiled kernel beside a plain Python statement of what it promises: same answers, and no index out of bounds."""
