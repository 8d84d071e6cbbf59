"""Where credentials come from, one file per source. Environment and file are for development and say so."""
