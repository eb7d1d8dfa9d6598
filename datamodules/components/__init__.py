"""What the data sets are made of: reading files, cropping, sampling, tables, dense targets."""
