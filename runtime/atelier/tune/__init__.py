"""`atelier tune`: searches the settings that make a load fastest. Each trial is `atelier serve` in
a process of its own, measured by `atelier.bench`; see docs/benchmarking.md."""
