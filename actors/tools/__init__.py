"""Tools: what a tenant's runs call outside of the platform. An adapter per kind of dependency, policies around each."""
