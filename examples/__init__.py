"""Sagas to start from. `tenantry up` knows them unless TENANTRY_SAGAS names others."""
