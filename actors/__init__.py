"""Who acts: plain classes that become Ray actors at run time. No Ray in here, so they are tested in milliseconds."""
