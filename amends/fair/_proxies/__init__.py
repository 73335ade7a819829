"""What `amends fair proxies` is made of: counts, fits, rates, the calibrated gap and report."""
