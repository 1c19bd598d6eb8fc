"""How things are kept and fetched: whole files, records, headers, the hub."""
