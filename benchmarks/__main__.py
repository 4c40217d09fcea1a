"""`make bench`: what can be measured in a minute or two. Longer experiments have commands of their own."""

from benchmarks import spine

spine.main()
