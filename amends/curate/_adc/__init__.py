"""What `amends curate adc_*` are made of: design, search, fetching, samples, their cleaning, and reports."""
