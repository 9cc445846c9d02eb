"""What a run has become: its page, its pictures, its diagnosis, and several runs side by side."""
