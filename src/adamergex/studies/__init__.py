"""Studies: many tables over one store, each adapter trained once for all of them."""
