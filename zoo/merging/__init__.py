"""Several networks made into one: means, soups, and the statistics that merging spoils."""
