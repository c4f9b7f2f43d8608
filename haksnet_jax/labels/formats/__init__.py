"""Label formats: what is read beside DOTA's text, each in a file of its own, and one `LabelSet` over all of them."""
