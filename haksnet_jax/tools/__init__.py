"""Programs that look at the rest: plan, benchmark, parity. Nothing imports them."""
