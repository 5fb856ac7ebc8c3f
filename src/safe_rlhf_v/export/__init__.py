"""Ways out: trained models as folders that load without this library."""
