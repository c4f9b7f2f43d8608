"""Programs that look at the rest: plan, benchmark, parity, doctor, info, export. Only the commands import them."""
