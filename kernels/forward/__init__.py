"""K3, thousands of dense networks on the same inputs: loss, right answers and error bits of each."""
