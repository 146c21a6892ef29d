"""What tests are written with: factories, scenarios, fakes, real servers."""
