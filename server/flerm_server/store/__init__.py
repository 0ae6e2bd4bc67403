"""Where recordings are kept: the contract (`base`) and its form in SQL (`sql`)."""
