"""Who the others are, and talk with them: members, placement, exchanges, fetching."""
